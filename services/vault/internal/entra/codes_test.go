package entra_test

import (
	"errors"
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/google/uuid"

	"phasekey.dev/pkg/entrasim"
	"phasekey.dev/pkg/secret"
	"phasekey.dev/services/vault/internal/directory"
)

// meet has the next request to a plane refused.
func (w world) meet(t *testing.T, plane entrasim.Plane, effect entrasim.Effect) {
	t.Helper()
	operation := "login.token"
	if plane == entrasim.PlaneGraph {
		operation = "graph.application.addPassword"
	}
	if _, err := w.sim.AddFault(entrasim.Fault{Plane: plane, Operation: operation, Count: 1, Effect: effect}); err != nil {
		t.Fatal(err)
	}
}

func TestCodes_EachHasItsClass(t *testing.T) {
	w := newWorld(t)
	app := w.application(t)
	is := func(code string, err error, class directory.Class) {
		t.Helper()
		var refused *directory.Error
		if !errors.As(err, &refused) || refused.Code != code || refused.Class != class {
			t.Errorf("%s: got %v, class %s, want %s", code, err, directory.ClassOf(err), class)
		}
	}
	for number, class := range directory.TokenCodes() {
		code := "AADSTS" + strconv.Itoa(number)
		w.meet(t, entrasim.PlaneLogin, entrasim.Effect{Code: code, Status: http.StatusBadRequest})
		_, err := w.dir.Token(t.Context(), directory.TokenRequest{
			TenantID: w.customer, ClientID: app.ClientID, Secret: secret.New("x"), Audience: resourceManager,
		})
		is(code, err, class)
	}
	for code, class := range directory.GraphCodes() {
		w.meet(t, entrasim.PlaneGraph, entrasim.Effect{Code: code, Status: http.StatusBadRequest})
		_, _, err := w.dir.AddPassword(t.Context(), app.ObjectID, uuid.NewString(), time.Now().Add(time.Hour))
		is(code, err, class)
	}
	// As the simulator itself says it.
	w.meet(t, entrasim.PlaneLogin, entrasim.Effect{Code: "50196"})
	_, err := w.dir.Token(t.Context(), directory.TokenRequest{TenantID: w.customer, ClientID: app.ClientID, Secret: secret.New("x"), Audience: resourceManager})
	is("AADSTS50196", err, directory.Throttled)
	w.meet(t, entrasim.PlaneLogin, entrasim.Effect{Code: "99999", Status: http.StatusBadRequest})
	_, err = w.dir.Token(t.Context(), directory.TokenRequest{TenantID: w.customer, ClientID: app.ClientID, Secret: secret.New("x"), Audience: resourceManager})
	is("AADSTS99999", err, directory.Unclassified)
}
