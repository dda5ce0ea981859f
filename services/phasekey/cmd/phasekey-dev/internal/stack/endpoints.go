package stack

import (
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"

	"phasekey.dev/services/phasekey/internal/contexts"
)

// Endpoints are where a stack listens, as its folder's endpoints.json has them.
type Endpoints struct {
	// Host and port of gRPC listeners.
	Registry     string `json:"registry"`
	Broker       string `json:"broker"`
	Vault        string `json:"vault"`
	VaultRunners string `json:"vault_runners"`
	// BrokerHTTPS is host and port of the consent pages.
	BrokerHTTPS string `json:"broker_https"`
	// Issuer is host and port of the vault as an OpenID issuer.
	Issuer string `json:"issuer"`
	// URLs of the simulated Entra.
	Login           string `json:"login"`
	Graph           string `json:"graph"`
	ResourceManager string `json:"resource_manager"`
	SimulatorAdmin  string `json:"simulator_admin"`
	// HomeTenant is the platform's own tenant there.
	HomeTenant string `json:"home_tenant"`

	redis string
}

// EndpointsFile is the file's path in a stack's folder.
func EndpointsFile(dir string) string { return filepath.Join(dir, "endpoints.json") }

// readEndpoints are those of the last stack in the folder; none when there was none.
func readEndpoints(dir string) Endpoints {
	var out Endpoints
	text, err := os.ReadFile(EndpointsFile(dir))
	if err != nil || json.Unmarshal(text, &out) != nil {
		return Endpoints{}
	}
	return out
}

func (e Endpoints) write(dir string) error {
	text, err := json.MarshalIndent(e, "", "  ")
	if err != nil {
		return err
	}
	if err := replaceFile(EndpointsFile(dir), append(text, '\n')); err != nil {
		return err
	}
	return e.contexts(dir)
}

// ContextsFile is the path of a stack's contexts for the phasekey command.
func ContextsFile(dir string) string { return filepath.Join(dir, "contexts.yaml") }

// contexts lets the phasekey command find the stack, as each of its people. Contexts that others made are left, and so is the choice of
// the current one.
func (e Endpoints) contexts(dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	file, err := contexts.Load(ContextsFile(dir))
	if err != nil {
		return err
	}
	tls := filepath.Join(dir, "tls")
	for _, role := range []string{"platform", "operator"} {
		if err := file.Set(role, contexts.Context{
			Registry: e.Registry, RegistryID: ID("registry"), Broker: e.Broker, BrokerID: ID("broker"), Vault: e.Vault, VaultID: ID("vault"),
			CAFile: filepath.Join(tls, "ca.pem"), CertFile: filepath.Join(tls, role+".pem"), KeyFile: filepath.Join(tls, role+"-key.pem"), Account: "acme",
		}); err != nil {
			return err
		}
	}
	return file.Save(ContextsFile(dir))
}

// replaceFile has the new contents appear whole or not at all.
func replaceFile(path string, contents []byte) error {
	next := path + ".new"
	if err := os.WriteFile(next, contents, 0o600); err != nil {
		return err
	}
	if err := os.Rename(next, path); err != nil {
		return fmt.Errorf("replace %s: %w", path, err)
	}
	return nil
}

func hostPort(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return ""
	}
	return u.Host
}
