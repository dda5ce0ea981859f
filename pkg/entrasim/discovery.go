package entrasim

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// origin is what the caller knows the simulator, or the plane, by.
func (s *Simulator) origin(c *call) string {
	if strings.HasPrefix(s.config.endpoints().Login, "http:") {
		return "http://" + c.Host
	}
	return "https://" + c.Host
}

// openIDConfiguration is GET /{tenant}/v2.0/.well-known/openid-configuration.
func (s *Simulator) openIDConfiguration(c *call) reply {
	tenant, issuer := strings.ToLower(c.path[0]), "{tenantid}"
	if !isShared(tenant) {
		s.mu.Lock()
		t := s.state.tenant(tenant)
		s.mu.Unlock()
		if t == nil {
			return loginError(c, problem{http.StatusBadRequest, "invalid_tenant", "90002", tenantNotFound(c.path[0])})
		}
		tenant, issuer = t.ID, t.ID
	}
	base := s.origin(c)
	return jsonReply(http.StatusOK, map[string]any{
		"token_endpoint":                        base + "/" + tenant + "/oauth2/v2.0/token",
		"token_endpoint_auth_methods_supported": []string{"client_secret_post", "private_key_jwt", "client_secret_basic"},
		"jwks_uri":                              base + "/" + tenant + "/discovery/v2.0/keys",
		"response_modes_supported":              []string{"query", "fragment", "form_post"},
		"subject_types_supported":               []string{"pairwise"},
		"id_token_signing_alg_values_supported": []string{"RS256"},
		"response_types_supported":              []string{"code", "id_token", "code id_token", "id_token token"},
		"scopes_supported":                      []string{"openid", "profile", "email", "offline_access"},
		"issuer":                                base + "/" + issuer + "/v2.0",
		"request_uri_parameter_supported":       false,
		"userinfo_endpoint":                     s.config.endpoints().Graph + "/oidc/userinfo",
		"authorization_endpoint":                base + "/" + tenant + "/oauth2/v2.0/authorize",
		"device_authorization_endpoint":         base + "/" + tenant + "/oauth2/v2.0/devicecode",
		"http_logout_supported":                 true,
		"frontchannel_logout_supported":         true,
		"end_session_endpoint":                  base + "/" + tenant + "/oauth2/v2.0/logout",
		"claims_supported":                      []string{"sub", "iss", "aud", "exp", "iat", "tid", "ver"},
		"kerberos_endpoint":                     base + "/" + tenant + "/kerberos",
		"tenant_region_scope":                   nil,
		"cloud_instance_name":                   "microsoftonline.com",
		"cloud_graph_host_name":                 "graph.windows.net",
		"msgraph_host":                          "graph.microsoft.com",
		"rbac_url":                              "https://pas.windows.net",
	})
}

// keys is GET /{tenant}/discovery/v2.0/keys.
func (s *Simulator) keys(c *call) reply {
	return jsonReply(http.StatusOK, map[string]any{
		"keys": []any{s.key.jwk(s.origin(c) + "/{tenantid}/v2.0")},
	})
}

// instanceDiscovery is GET /common/discovery/instance: which hosts are one cloud.
func (s *Simulator) instanceDiscovery(c *call) reply {
	endpoint, err := url.Parse(c.URL.Query().Get("authorization_endpoint"))
	parts := []string{}
	if err == nil {
		parts = strings.Split(strings.Trim(endpoint.Path, "/"), "/")
	}
	if err != nil || endpoint.Host == "" || parts[0] == "" {
		return loginError(c, problem{http.StatusBadRequest, "invalid_request", "900144", "The request body must contain the following parameter: 'authorization_endpoint'."})
	}
	public := []string{"login.microsoftonline.com", "login.windows.net", "login.microsoft.com", "sts.windows.net"}
	metadata := []any{map[string]any{"preferred_network": public[0], "preferred_cache": "login.windows.net", "aliases": public}}
	if host := endpoint.Host; !slices.Contains(public, host) {
		if host != c.Host {
			return loginError(c, problem{http.StatusBadRequest, "invalid_instance", "50049", "Unknown or invalid instance."})
		}
		metadata = append(metadata, map[string]any{"preferred_network": host, "preferred_cache": host, "aliases": []string{host}})
	}
	return jsonReply(http.StatusOK, map[string]any{
		"tenant_discovery_endpoint": s.origin(c) + "/" + parts[0] + "/v2.0/.well-known/openid-configuration",
		"api-version":               "1.1",
		"metadata":                  metadata,
	})
}

// isShared tells whether a path's tenant stands for all of them.
func isShared(tenant string) bool {
	return tenant == "common" || tenant == "organizations"
}
