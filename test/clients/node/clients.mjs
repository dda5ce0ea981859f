// Runs Microsoft's clients for Node against the cloud that the environment's CLOUD describes, and prints what they saw as JSON.
// The judging is done by the Go test that started this.
import { SubscriptionClient } from "@azure/arm-subscriptions";
import { ClientAssertionCredential, ClientCertificateCredential, ClientSecretCredential } from "@azure/identity";
import { Client } from "@microsoft/microsoft-graph-client";
import { TokenCredentialAuthenticationProvider } from "@microsoft/microsoft-graph-client/authProviders/azureTokenCredentials/index.js";

const cloud = JSON.parse(process.env.CLOUD);

// Where the cloud is: at its own origin, of which MSAL knows nothing, or behind the public cloud's names, which it knows by heart.
const own = { authorityHost: cloud.own, disableInstanceDiscovery: true, retryOptions: { maxRetries: 0 } };
const secret = (text, options) => new ClientSecretCredential(cloud.tenant, cloud.clientId, text, options);

// What the credential's tokens are good for at Resource Manager.
async function subscriptions(credential, endpoint) {
  const found = [];
  for await (const each of new SubscriptionClient(credential, { endpoint }).subscriptions.list()) {
    found.push(each.subscriptionId);
  }
  return found;
}

const graphOf = (credential) =>
  Client.initWithMiddleware({
    baseUrl: cloud.own,
    customHosts: new Set([new URL(cloud.own).hostname]),
    authProvider: new TokenCredentialAuthenticationProvider(credential, { scopes: ["https://graph.microsoft.com/.default"] }),
  });

async function organizations(credential) {
  const answer = await graphOf(credential).api("/organization").get();
  return answer.value.map((each) => each.id);
}

// An application's life, by Graph.
async function application(credential) {
  const graph = graphOf(credential);
  const made = await graph.api("/applications").post({ displayName: "made by Node" });
  const where = `/applications/${made.id}`;
  const added = await graph.api(`${where}/addPassword`).post({ passwordCredential: { displayName: "one" } });
  const read = await graph.api(where).get();
  await graph.api(where).delete();
  return {
    name: read.displayName,
    secretLength: added.secretText.length,
    keyIds: [added.keyId, ...read.passwordCredentials.map((each) => each.keyId)],
    secretsShown: read.passwordCredentials.filter((each) => each.secretText).length,
    afterwards: await refusal(() => graph.api(where).get()),
  };
}

// How a client says no.
async function refusal(call) {
  try {
    await call();
  } catch (e) {
    return { name: e.name, code: e.code ?? e.errorResponse?.error, status: e.statusCode, message: e.message };
  }
  return { name: "none" };
}

const right = secret(cloud.clientSecret, own);
const byCertificate = new ClientCertificateCredential(cloud.tenant, cloud.clientId, { certificatePath: cloud.certificate }, own);
const byAssertion = new ClientAssertionCredential(cloud.tenant, cloud.clientId, async () => cloud.assertion, own);
const byName = secret(cloud.clientSecret, {});

const seen = { subscriptions: {}, organizations: {} };
for (const [name, credential] of Object.entries({ secret: right, certificate: byCertificate, assertion: byAssertion })) {
  seen.subscriptions[name] = await subscriptions(credential, cloud.own);
  seen.organizations[name] = await organizations(credential);
}
seen.subscriptions.byName = await subscriptions(byName, "https://management.azure.com");
seen.application = await application(right);
seen.refusals = {
  secret: await refusal(() => secret("wrong", own).getToken("https://management.azure.com/.default")),
  origin: await refusal(() => secret(cloud.clientSecret, { authorityHost: cloud.own }).getToken("https://management.azure.com/.default")),
  subscription: await refusal(() => new SubscriptionClient(right, { endpoint: cloud.own }).subscriptions.get(cloud.nobody)),
  application: await refusal(() => graphOf(right).api(`/applications/${cloud.nobody}`).get()),
};
console.log(JSON.stringify(seen));
