package entrasim_test

import (
	"net/http"
	"testing"

	"phasekey.dev/pkg/entrasim"
)

func TestARM_MetadataSaysWhereTheCloudIs(t *testing.T) {
	const own = "https://127.0.0.1:8443"
	for _, test := range []struct {
		name, base, asked, login, graph, resourceManager string
	}{
		{"by host name", "", "https://management.azure.com", "https://login.microsoftonline.com", "https://graph.microsoft.com/", "https://management.azure.com/"},
		{"on one origin", own, own, own, own + "/", own + "/"},
		{"by host name, where there is an origin too", own, "https://management.azure.com", "https://login.microsoftonline.com", "https://graph.microsoft.com/", "https://management.azure.com/"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t, entrasim.Config{BaseURL: test.base})
			got := w.send(http.MethodGet, test.asked+"/metadata/endpoints?api-version=2022-09-01", "", "")
			if got.status != http.StatusOK || got.text("name") != "AzureCloud" || got.text("authentication/loginEndpoint") != test.login ||
				got.text("microsoftGraphResourceId") != test.graph || got.text("resourceManager") != test.resourceManager {
				t.Errorf("got %d %s", got.status, got.body)
			}
			for query, code := range map[string]string{"": "MissingApiVersionParameter", "?api-version=2015-01-01": "InvalidApiVersionParameter"} {
				if got := w.send(http.MethodGet, test.asked+"/metadata/endpoints"+query, "", ""); got.status != http.StatusBadRequest || got.text("error/code") != code {
					t.Errorf("with %q: %d %s", query, got.status, got.body)
				}
			}
		})
	}
}

// TestLogin_OriginsAreAudiences is how clients ask that were told where a
// cloud is, and nothing of its audiences.
func TestLogin_OriginsAreAudiences(t *testing.T) {
	const own = "https://127.0.0.1:8443"
	w := newWorld(t, entrasim.Config{BaseURL: own})
	for _, scope := range []string{own + "/.default", own + "//.default"} {
		token := w.token(homeID, w.platform.ClientID, w.platform.ClientSecret, scope)
		if got := w.send(http.MethodGet, own+"/v1.0/applications", token, ""); got.status != http.StatusOK {
			t.Errorf("%s: Graph: %d %s", scope, got.status, got.body)
		}
		if got := w.arm(http.MethodGet, "/subscriptions", token, ""); got.status != http.StatusOK {
			t.Errorf("%s: Resource Manager: %d %s", scope, got.status, got.body)
		}
	}
	apart := newWorld(t, entrasim.Config{Endpoints: entrasim.Endpoints{Graph: "https://127.0.0.1:8445", ResourceManager: "https://127.0.0.1:8446"}})
	token := apart.token(homeID, apart.platform.ClientID, apart.platform.ClientSecret, "https://127.0.0.1:8446/.default")
	if got := apart.send(http.MethodGet, "https://127.0.0.1:8446/subscriptions?api-version=2022-12-01", token, ""); got.status != http.StatusOK {
		t.Errorf("Resource Manager's own origin: %d %s", got.status, got.body)
	}
	if got := apart.send(http.MethodGet, "https://127.0.0.1:8445/v1.0/applications", token, ""); got.status != http.StatusUnauthorized {
		t.Errorf("Graph takes a token for Resource Manager's origin: %d", got.status)
	}
	for i, w := range []*world{w, newWorld(t, entrasim.Config{})} {
		for _, scope := range []string{"https://127.0.0.1:8444/.default", "/.default"} {
			form := credentials(w.platform.ClientID, w.platform.ClientSecret, scope)
			if got := w.login(homeID, form); got.status == http.StatusOK {
				t.Errorf("world %d: a token for %q", i, scope)
			}
		}
	}
}
