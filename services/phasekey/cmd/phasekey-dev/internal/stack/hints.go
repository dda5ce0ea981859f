package stack

import (
	"fmt"
	"io"
	"strings"
)

// Hints prints where everything is, and calls that work when pasted.
func (s *Stack) Hints(w io.Writer) {
	at := s.endpoints
	var b strings.Builder
	fmt.Fprintf(&b, "phasekey-dev is up; everything is in %s\n\n", s.config.Dir)
	for _, line := range [][2]string{
		{"registry", at.Registry}, {"broker", at.Broker}, {"vault", at.Vault}, {"vault, for runners", at.VaultRunners},
		{"consent pages", s.publicURL()}, {"simulated Entra", at.Login}, {"its admin API", at.SimulatorAdmin}, {"its administrator", s.world.Administrator},
	} {
		fmt.Fprintf(&b, "  %-20s %s\n", line[0], line[1])
	}
	tls := s.path("tls")
	call := fmt.Sprintf("grpcurl -cacert %[1]s/ca.pem -cert %[1]s/platform.pem -key %[1]s/platform-key.pem", tls)
	fmt.Fprintf(&b, `
Try (docs/cli.md goes on from here):

  export PHASEKEY_CONTEXTS=%[9]s
  .bin/phasekey integrations create network-read --tenant %[3]s --subscription %[4]s --wait
  .bin/phasekey consent start network-read

Or call the services themselves (grpcurl is in .bin after 'make setup'):

  %[1]s %[2]s list

  %[1]s -d '{"parent":"accounts/acme","integration_id":"network-read","integration":{"display_name":"network-read","tenant_id":"%[3]s","default_subscription_id":"%[4]s"}}' \
    %[2]s phasekey.registry.v1.IntegrationService/CreateIntegration

  %[1]s -d '{"name":"accounts/acme/integrations/network-read"}' \
    %[2]s phasekey.registry.v1.IntegrationService/GetIntegration

  %[1]s -d '{"parent":"accounts/acme","consent_session":{"integration":"accounts/acme/integrations/network-read"}}' \
    %[5]s phasekey.broker.v1.ConsentService/CreateConsentSession

  Its consent_uri is the page for the customer's administrator: open it in a browser, which warns unless it trusts
  %[6]s/ca.pem, and sign in at the simulated Entra as %[7]s.

  %[1]s -d '{"parent":"accounts/acme/integrations/network-read"}' \
    %[8]s phasekey.vault.v1.RotationService/ListCredentialVersions

Ctrl-C stops it; the same --dir goes on from there.
`, call, at.Registry, s.world.CustomerTenant, s.world.Subscription, at.Broker,
		tls, s.world.Administrator, at.Vault, ContextsFile(s.config.Dir))
	// Nobody reading is no reason not to serve.
	_, _ = io.WriteString(w, b.String())
}
