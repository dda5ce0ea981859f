package runner

import (
	"maps"
	"slices"
	"strconv"
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
	inherited = l.cfg.Runner.harmless(inherited)
	own := identity(c)
	base := "http://" + l.addr.String()
	maps.Copy(own, noProxy(inherited, l.addr.Addr().String()))
	if l.federated() {
		set(own, "true", "ARM_USE_OIDC")
		set(own, "false", "ARM_USE_MSI")
		set(own, base+pathOIDC, "ARM_OIDC_REQUEST_URL")
		set(own, l.secret.Expose(), "ARM_OIDC_REQUEST_TOKEN")
		// Azure's SDKs take an assertion from a file alone, and there is none: they are not to find another way.
		set(own, "WorkloadIdentityCredential", "AZURE_TOKEN_CREDENTIALS")
		return overlay(inherited, own)
	}
	set(own, "true", "ARM_USE_MSI")
	set(own, "ManagedIdentityCredential", "AZURE_TOKEN_CREDENTIALS")
	set(own, base+pathVM, "ARM_MSI_ENDPOINT")
	set(own, base+pathApp, "MSI_ENDPOINT", "IDENTITY_ENDPOINT")
	set(own, l.secret.Expose(), "MSI_SECRET", "IDENTITY_HEADER")
	return overlay(inherited, own)
}

// ClientSecretEnvironment returns the environment of a child that is given c's client secret itself, by the same rules as
// Loopback.Environment. The result is a secret: everything that can read the child's environment has it.
func (r *Runner) ClientSecretEnvironment(inherited []string, c Credential) []string {
	own := identity(c)
	set(own, c.ClientSecret.Expose(), "ARM_CLIENT_SECRET", "AZURE_CLIENT_SECRET")
	set(own, "false", "ARM_USE_MSI")
	set(own, "EnvironmentCredential", "AZURE_TOKEN_CREDENTIALS")
	return overlay(r.harmless(inherited), own)
}

// TokenEnvironment returns the environment of a child that is given c's access token or assertion itself, which is not renewed, by the same
// rules as Loopback.Environment. AZURE_ACCESS_TOKEN_EXPIRES_ON is in seconds since 1970. The result is a secret: everything that can
// read the child's environment has it.
func (r *Runner) TokenEnvironment(inherited []string, c Credential) []string {
	own := identity(c)
	set(own, "false", "ARM_USE_MSI")
	// Azure's SDKs take neither, and are not to find the machine's own identity.
	set(own, "EnvironmentCredential", "AZURE_TOKEN_CREDENTIALS")
	if c.Token.IsZero() {
		set(own, c.Assertion.Expose(), "ARM_OIDC_TOKEN")
		set(own, "true", "ARM_USE_OIDC")
	} else {
		set(own, c.Token.Expose(), "AZURE_ACCESS_TOKEN")
		set(own, strconv.FormatInt(c.ExpireTime.Unix(), 10), "AZURE_ACCESS_TOKEN_EXPIRES_ON")
	}
	return overlay(r.harmless(inherited), own)
}

// identity is what all kinds of children are told: whom c belongs to, and how its holder has to behave.
func identity(c Credential) map[string]string {
	own := map[string]string{}
	for name, value := range c.Environment {
		if strings.HasPrefix(name, "ARM_") || strings.HasPrefix(name, "AZURE_") {
			own[name] = value
		}
	}
	set(own, c.TenantID, "ARM_TENANT_ID", "AZURE_TENANT_ID")
	set(own, c.ClientID, "ARM_CLIENT_ID", "AZURE_CLIENT_ID")
	set(own, c.SubscriptionID, "ARM_SUBSCRIPTION_ID", "AZURE_SUBSCRIPTION_ID")
	// Should the credential be refused, the login of whoever owns this machine is no substitute.
	set(own, "false", "ARM_USE_CLI")
	if c.Access == typev1.Access_ACCESS_READ {
		// A reader may not register resource providers, and azurerm fails if it tries.
		set(own, "none", "ARM_RESOURCE_PROVIDER_REGISTRATIONS")
	}
	return own
}

// set gives all names a value, unless it is empty.
func set(own map[string]string, value string, names ...string) {
	for _, name := range names {
		if value != "" {
			own[name] = value
		}
	}
}

// harmless is what was inherited, less what is ours, says who the child is, or has the grant in it.
func (r *Runner) harmless(inherited []string) []string {
	grant := r.cfg.Grant.Expose()
	var env []string
	for _, entry := range inherited {
		name, value, ok := strings.Cut(entry, "=")
		if ok && !foreign(name) && !strings.Contains(value, grant) {
			env = append(env, entry)
		}
	}
	return env
}

// overlay is what was inherited, with own instead of what has the same name.
func overlay(inherited []string, own map[string]string) []string {
	var env []string
	for _, entry := range inherited {
		name, _, _ := strings.Cut(entry, "=")
		if _, ours := own[name]; !ours {
			env = append(env, entry)
		}
	}
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
func noProxy(inherited []string, host string) map[string]string {
	twins := map[string]string{"NO_PROXY": "no_proxy", "no_proxy": "NO_PROXY"}
	old := map[string]string{}
	for _, entry := range inherited {
		name, value, _ := strings.Cut(entry, "=")
		if _, ok := twins[name]; ok {
			old[name] = value
		}
	}
	out := map[string]string{}
	for name, twin := range twins {
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
