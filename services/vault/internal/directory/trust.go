package directory

// Trust is a federated credential of an application: Entra takes assertions of this issuer, about this subject and for this audience, in place of a
// secret.
type Trust struct {
	// Name identifies it within the application, for ever: 3 to 120 of A-Za-z0-9_-, beginning with a letter or digit.
	Name string
	// Issuer, Subject and Audience are compared exactly, with upper and lower case.
	Issuer, Subject, Audience string
}

// AssertionAudience is what assertions for Entra's token exchange are for.
const AssertionAudience = "api://AzureADTokenExchange"

// Subject is the `sub` of an integration's assertions, by the access that they are for.
func Subject(integrationUID string, write bool) string {
	if write {
		return "integration:" + integrationUID + ":write"
	}
	return "integration:" + integrationUID + ":read"
}

// Trusts are the federated credentials of an integration's application.
func Trusts(deployment, issuer, integrationUID string) []Trust {
	name := "phasekey-" + deployment
	return []Trust{
		{Name: name + "-read", Issuer: issuer, Subject: Subject(integrationUID, false), Audience: AssertionAudience},
		{Name: name + "-write", Issuer: issuer, Subject: Subject(integrationUID, true), Audience: AssertionAudience},
	}
}
