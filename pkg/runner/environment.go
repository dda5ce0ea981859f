package runner

import (
	"maps"
	"slices"
	"strings"

	typev1 "phasekey.dev/gen/phasekey/type/v1"
)

// kept are inherited variables that begin as an identity's do and are none: how the providers behave, and the keys of a
// state backend, which the platform gave on purpose.
var kept = []string{
	"ARM_ACCESS_KEY",
	"ARM_SAS_TOKEN",
	"ARM_CORRELATION_REQUEST_ID",
	"ARM_DISABLE_CORRELATION_REQUEST_ID",
	"ARM_DISABLE_TERRAFORM_PARTNER_ID",
	"ARM_PARTNER_ID",
	"ARM_RESOURCE_PROVIDERS_TO_REGISTER",
	"ARM_RESOURCE_PROVIDER_REGISTRATIONS",
	"ARM_SKIP_PROVIDER_REGISTRATION",
	"ARM_STORAGE_USE_AZUREAD",
	"AZURE_HTTP_USER_AGENT",
	"AZURE_SDK_GO_LOGGING",
}

// Environment returns a child's environment: what was inherited, less everything that is ours or would give the child
// another identity, plus what c and this endpoint need. Values of the vault are taken only under names that providers
// read as theirs: a vault that lies must not choose what a child loads.
func (l *Loopback) Environment(inherited []string, c Credential) []string {
	own := map[string]string{}
	for name, value := range c.Environment {
		if strings.HasPrefix(name, "ARM_") || strings.HasPrefix(name, "AZURE_") {
			own[name] = value
		}
	}
	base := "http://" + l.addr.String()
	set := func(value string, names ...string) {
		for _, name := range names {
			if value != "" {
				own[name] = value
			}
		}
	}
	set(c.TenantID, "ARM_TENANT_ID", "AZURE_TENANT_ID")
	set(c.ClientID, "ARM_CLIENT_ID", "AZURE_CLIENT_ID")
	set(c.SubscriptionID, "ARM_SUBSCRIPTION_ID", "AZURE_SUBSCRIPTION_ID")
	set("true", "ARM_USE_MSI")
	// Should the endpoint refuse, the login of whoever owns this machine is no substitute.
	set("false", "ARM_USE_CLI")
	set("ManagedIdentityCredential", "AZURE_TOKEN_CREDENTIALS")
	set(base+pathVM, "ARM_MSI_ENDPOINT")
	set(base+pathApp, "MSI_ENDPOINT", "IDENTITY_ENDPOINT")
	set(l.secret.Expose(), "MSI_SECRET", "IDENTITY_HEADER")
	if c.Access == typev1.Access_ACCESS_READ {
		// A reader may not register resource providers, and azurerm fails if it tries.
		set("none", "ARM_RESOURCE_PROVIDER_REGISTRATIONS")
	}

	grant := l.cfg.Runner.cfg.Grant.Expose()
	var env []string
	old := map[string]string{}
	for _, entry := range inherited {
		name, value, ok := strings.Cut(entry, "=")
		switch {
		case !ok || foreign(name) || strings.Contains(value, grant):
		case name == "NO_PROXY" || name == "no_proxy":
			old[name] = value
		default:
			if _, ours := own[name]; !ours {
				env = append(env, entry)
			}
		}
	}
	maps.Copy(own, noProxy(old, l.addr.Addr().String()))
	for _, name := range slices.Sorted(maps.Keys(own)) {
		env = append(env, name+"="+own[name])
	}
	return env
}

// foreign reports whether an inherited variable is ours, or may say who the child is.
func foreign(name string) bool {
	if slices.Contains(kept, name) {
		return false
	}
	for _, prefix := range []string{"PHASEKEY_", "ARM_", "AZURE_", "IDENTITY_", "MSI_"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	// Azure Arc's, which azidentity looks at beside IDENTITY_ENDPOINT.
	return name == "IMDS_ENDPOINT"
}

// noProxy adds a host to both spellings of the variable. Programs read one or the other first, so the one that is missing
// gets what the other says.
func noProxy(old map[string]string, host string) map[string]string {
	out := map[string]string{}
	for name, twin := range map[string]string{"NO_PROXY": "no_proxy", "no_proxy": "NO_PROXY"} {
		value, ok := old[name]
		if !ok {
			value = old[twin]
		}
		switch {
		case value == "":
			value = host
		case value != "*" && !slices.Contains(strings.Split(strings.ReplaceAll(value, " ", ""), ","), host):
			value += "," + host
		}
		out[name] = value
	}
	return out
}
