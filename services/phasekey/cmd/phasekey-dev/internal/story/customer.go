package story

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"phasekey.dev/services/phasekey/cmd/phasekey-dev/internal/stack"
)

// customer is the customer's administrator at the tools of the Azure portal, which the simulator's admin API stands for.
type customer struct {
	http  *http.Client
	admin string
	world stack.World
}

func newCustomer(transport http.RoundTripper, at stack.Endpoints, world stack.World) *customer {
	return &customer{http: &http.Client{Timeout: 10 * time.Second, Transport: transport}, admin: at.SimulatorAdmin, world: world}
}

// errConflict means that it is so already.
var errConflict = errors.New("exists already")

// az carries out a line of the Azure command line: the role assignments that the consent page shows.
func (c *customer) az(ctx context.Context, line string) error {
	words := strings.Fields(line)
	if len(words) < 4 || strings.Join(words[:4], " ") != "az role assignment create" {
		return fmt.Errorf("not a line for a role assignment: %s", line)
	}
	flags := map[string]string{}
	for i := 4; i+1 < len(words); i += 2 {
		flags[words[i]] = strings.Trim(words[i+1], `"'`)
	}
	err := c.ask(ctx, http.MethodPost, "/roleAssignments", map[string]string{
		"scope": flags["--scope"], "principalId": flags["--assignee-object-id"], "role": flags["--role"],
	}, nil)
	if errors.Is(err, errConflict) {
		return nil
	}
	return err
}

// principalName is what the customer's tenant calls an application's service principal.
func (c *customer) principalName(ctx context.Context, clientID string) (string, error) {
	var out struct {
		DisplayName string `json:"displayName"`
	}
	query := url.Values{"tenant": {c.world.CustomerTenant}, "clientId": {clientID}}
	err := c.ask(ctx, http.MethodGet, "/principals?"+query.Encode(), nil, &out)
	return out.DisplayName, err
}

// event is a change that the simulator's journal has.
type event struct {
	Kind  string `json:"kind"`
	KeyID string `json:"keyId"`
	// Visible is when each replica shows it, in nanoseconds since 1970.
	Visible struct {
		ARM []int64 `json:"arm"`
	} `json:"visible"`
}

// settled tells whether all of Resource Manager knows the roles that were assigned.
func (c *customer) settled(ctx context.Context) (bool, error) {
	var assigned []event
	query := url.Values{"tenant": {c.world.CustomerTenant}, "kind": {"role.assigned"}}
	if err := c.ask(ctx, http.MethodGet, "/journal?"+query.Encode(), nil, &assigned); err != nil {
		return false, err
	}
	for _, a := range assigned {
		for _, at := range a.Visible.ARM {
			if time.Now().UnixNano() < at {
				return false, nil
			}
		}
	}
	return true, nil
}

// journal is what became of an application, in order.
func (c *customer) journal(ctx context.Context, clientID string) ([]event, error) {
	var out []event
	query := url.Values{"application": {clientID}, "kind": {
		"application.created", "application.deleted", "application.purged", "password.added", "password.removed",
	}}
	err := c.ask(ctx, http.MethodGet, "/journal?"+query.Encode(), nil, &out)
	return out, err
}

// passwords are those that an application has at Entra, by the journal.
func passwords(events []event) map[string]bool {
	live := map[string]bool{}
	for _, e := range events {
		switch e.Kind {
		case "password.added":
			live[e.KeyID] = true
		case "password.removed":
			delete(live, e.KeyID)
		}
	}
	return live
}

// works reports whether any replica of the token service still takes a secret.
func (c *customer) works(ctx context.Context, clientID, keyID string) (bool, error) {
	var out struct {
		Nowhere bool `json:"nowhere"`
	}
	query := url.Values{"tenant": {c.world.CustomerTenant}, "clientId": {clientID}, "keyId": {keyID}}
	err := c.ask(ctx, http.MethodGet, "/secrets?"+query.Encode(), nil, &out)
	return !out.Nowhere, err
}

func (c *customer) ask(ctx context.Context, method, path string, in, out any) error {
	var payload io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return err
		}
		payload = bytes.NewReader(text)
	}
	request, err := http.NewRequestWithContext(ctx, method, c.admin+path, payload)
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := c.http.Do(request)
	if err != nil {
		return err
	}
	text, err := io.ReadAll(io.LimitReader(response.Body, maxJournal))
	switch err = errors.Join(err, response.Body.Close()); {
	case err != nil:
		return err
	case response.StatusCode == http.StatusConflict:
		return fmt.Errorf("%s %s: %w", method, path, errConflict)
	case response.StatusCode != http.StatusOK:
		return fmt.Errorf("%s %s: status %d: %s", method, path, response.StatusCode, text)
	case out == nil:
		return nil
	}
	return json.Unmarshal(text, out)
}

// maxJournal bounds an answer of the admin API.
const maxJournal = 16 << 20
