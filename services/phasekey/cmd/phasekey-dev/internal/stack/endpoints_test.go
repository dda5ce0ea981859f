package stack

import (
	"testing"

	"phasekey.dev/services/phasekey/internal/contexts"
)

func TestEndpoints_LeaveTheContextsOfOthers(t *testing.T) {
	dir := t.TempDir()
	at := Endpoints{Registry: "localhost:1", Broker: "localhost:2", Vault: "localhost:3"}
	if err := at.write(dir); err != nil {
		t.Fatal(err)
	}
	file, err := contexts.Load(ContextsFile(dir))
	if err != nil || file.Current != "platform" {
		t.Fatalf("%+v, %v", file, err)
	}
	mine := contexts.Context{Registry: "registry.example.com:443", CAFile: "/ca", CertFile: "/cert", KeyFile: "/key"}
	if err := file.Set("mine", mine); err != nil {
		t.Fatal(err)
	}
	if err := file.Use("mine"); err != nil {
		t.Fatal(err)
	}
	if err := file.Save(ContextsFile(dir)); err != nil {
		t.Fatal(err)
	}
	at.Registry = "localhost:4"
	if err := at.write(dir); err != nil {
		t.Fatal(err)
	}
	again, err := contexts.Load(ContextsFile(dir))
	if err != nil || again.Contexts["mine"] != mine || again.Current != "mine" {
		t.Errorf("%+v, %v", again, err)
	}
	if again.Contexts["operator"].Registry != "localhost:4" || len(again.Contexts) != 3 {
		t.Errorf("%+v", again)
	}
}
