package entrasim

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// routeAdmin serves the Go methods over HTTP: JSON in, JSON out.
func (s *Simulator) routeAdmin(c *call) {
	c.actor, c.operation = control, "admin.unknown"
	c.fail = func(status int, code, message string) reply {
		out := jsonReply(status, map[string]any{"error": map[string]string{"code": code, "message": message}})
		out.code = code
		return out
	}
	one := func(n int) string {
		if len(c.path) > n {
			return c.path[n]
		}
		return ""
	}
	pattern := c.Method + " " + one(0)
	if len(c.path) > 1 {
		pattern += "/{}"
	}
	if len(c.path) > 2 {
		pattern += "/" + strings.Join(c.path[2:], "/")
	}
	routes := map[string]func() (any, error){
		"GET ":                         func() (any, error) { return s.Endpoints(), nil },
		"GET tenants":                  func() (any, error) { return s.Tenants(), nil },
		"POST tenants":                 func() (any, error) { return decoded(c, s.CreateTenant) },
		"GET tenants/{}/people":        func() (any, error) { return s.People(one(1)) },
		"GET tenants/{}/subscriptions": func() (any, error) { return s.Subscriptions(one(1)) },
		"GET tenants/{}/quota":         func() (any, error) { return s.Quota(one(1)) },
		"POST quotas":                  func() (any, error) { return decoded(c, s.adminQuota) },
		"POST passwordPolicies":        func() (any, error) { return decoded(c, s.adminPasswordPolicy) },
		"POST people":                  func() (any, error) { return decoded(c, s.CreatePerson) },
		"POST subscriptions":           func() (any, error) { return decoded(c, s.CreateSubscription) },
		"POST managementGroups":        func() (any, error) { return decoded(c, s.CreateManagementGroup) },
		"POST denyAssignments":         func() (any, error) { return decoded(c, s.Deny) },
		"DELETE denyAssignments": func() (any, error) {
			return map[string]string{}, s.RemoveDenial(c.URL.Query().Get("id"))
		},
		"POST platforms": func() (any, error) { return decoded(c, s.CreatePlatform) },
		"POST consents": func() (any, error) {
			return decoded(c, func(n Consent) (any, error) {
				location, err := s.Consent(c.Context(), n)
				return map[string]string{"location": location}, err
			})
		},
		"GET principals":       func() (any, error) { return s.Principal(c.URL.Query().Get("tenant"), c.URL.Query().Get("clientId")) },
		"POST principals":      func() (any, error) { return decoded(c, s.adminPrincipal) },
		"POST signInBlocks":    func() (any, error) { return decoded(c, s.adminBlock) },
		"POST roleAssignments": func() (any, error) { return decoded(c, s.AssignRole) },
		"DELETE roleAssignments": func() (any, error) {
			return map[string]string{}, s.RemoveRole(c.URL.Query().Get("id"))
		},
		"GET faults":       func() (any, error) { return s.Faults(), nil },
		"POST faults":      func() (any, error) { return decoded(c, s.AddFault) },
		"DELETE faults/{}": func() (any, error) { return map[string]string{}, s.RemoveFault(one(1)) },
		"GET journal": func() (any, error) {
			q, err := parseQuery(c.URL.Query())
			if err != nil {
				return nil, err
			}
			return s.Journal(q), nil
		},
		"GET secrets": func() (any, error) {
			q := c.URL.Query()
			return s.SecretState(q.Get("tenant"), q.Get("clientId"), q.Get("keyId"))
		},
		"GET credentials": func() (any, error) {
			at, err := moment(c.URL.Query(), "at", c.now)
			if err != nil {
				return nil, err
			}
			return s.Credentials(c.URL.Query().Get("clientId"), at)
		},
		"GET writes": func() (any, error) {
			since, err := moment(c.URL.Query(), "since", c.now)
			if err != nil {
				return nil, err
			}
			return s.Writes(c.URL.Query().Get("clientId"), since)
		},
		"POST secretKeys": func() (any, error) { return decoded(c, s.adminSecretKey) },
		"POST tokens": func() (any, error) {
			return decoded(c, func(n struct {
				Token string `json:"token"`
			}) (any, error) {
				return s.TokenState(n.Token), nil
			})
		},
	}
	run, found := routes[pattern]
	if found {
		c.operation = "admin " + pattern
	}
	c.run = func(c *call) reply {
		if !s.config.OpenAdmin && remote(c.RemoteAddr) {
			return c.fail(http.StatusForbidden, "NotLocal", "The admin API answers only the machine it runs on.")
		}
		if !found {
			return c.fail(http.StatusNotFound, "NotFound", "There is no "+clip(pattern, 128)+" here.")
		}
		value, err := run()
		var consent *ConsentError
		switch {
		case errors.As(err, &consent):
			return c.fail(http.StatusConflict, consent.Code, err.Error())
		case errors.Is(err, ErrNotFound):
			return c.fail(http.StatusNotFound, "NotFound", err.Error())
		case errors.Is(err, ErrForgotten):
			return c.fail(http.StatusGone, "Forgotten", err.Error())
		case errors.Is(err, ErrExists):
			return c.fail(http.StatusConflict, "AlreadyExists", err.Error())
		case errors.Is(err, ErrInvalid):
			return c.fail(http.StatusBadRequest, "Invalid", err.Error())
		case err != nil:
			return c.fail(http.StatusInternalServerError, "Internal", err.Error())
		}
		return jsonReply(http.StatusOK, value)
	}
}

// decoded runs f with the request's body, of which it must know every field.
func decoded[In, Out any](c *call, f func(In) (Out, error)) (any, error) {
	var in In
	d := json.NewDecoder(bytes.NewReader(c.body))
	d.DisallowUnknownFields()
	if err := d.Decode(&in); err != nil {
		return nil, fmt.Errorf("request body: %w: %w", ErrInvalid, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("request body goes on after its end: %w", ErrInvalid)
	}
	return f(in)
}

type principalBody struct {
	Tenant   string `json:"tenant"`
	ClientID string `json:"clientId"`
	// Enabled is set to disable or enable the principal, Removed to delete it.
	Enabled *bool `json:"accountEnabled"`
	Removed bool  `json:"removed"`
}

func (s *Simulator) adminPrincipal(b principalBody) (any, error) {
	if b.Removed {
		return map[string]string{}, s.RemovePrincipal(b.Tenant, b.ClientID)
	}
	if b.Enabled == nil {
		return nil, fmt.Errorf("neither accountEnabled nor removed is set: %w", ErrInvalid)
	}
	if err := s.EnablePrincipal(b.Tenant, b.ClientID, *b.Enabled); err != nil {
		return nil, err
	}
	return s.Principal(b.Tenant, b.ClientID)
}

// adminSecretKey is SecretKey, whose text is no thing for a URL.
func (s *Simulator) adminSecretKey(n struct {
	ClientID string `json:"clientId"`
	Secret   string `json:"secret"`
}) (any, error) {
	id, err := s.SecretKey(n.ClientID, n.Secret)
	return map[string]string{"keyId": id}, err
}

// moment reads a time (RFC 3339) of a query, the usual one when it has none.
func moment(v url.Values, name string, usual time.Time) (time.Time, error) {
	if v.Get(name) == "" {
		return usual, nil
	}
	at, err := time.Parse(time.RFC3339Nano, v.Get(name))
	if err != nil {
		return at, fmt.Errorf("%s: %w: %w", name, ErrInvalid, err)
	}
	return at, nil
}

// parseQuery reads a journal query: after, since, until (RFC 3339), kind (may be
// repeated), plane, operation, tenant, application, keyId, limit.
func parseQuery(v url.Values) (Query, error) {
	q := Query{
		Kinds: v["kind"], Plane: Plane(v.Get("plane")), Operation: v.Get("operation"),
		Tenant: v.Get("tenant"), Application: v.Get("application"), KeyID: v.Get("keyId"),
	}
	var errs []error
	if text := v.Get("after"); text != "" {
		n, err := strconv.ParseUint(text, 10, 64)
		q.After, errs = n, append(errs, err)
	}
	if text := v.Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		q.Limit, errs = n, append(errs, err)
	}
	for name, to := range map[string]*time.Time{"since": &q.Since, "until": &q.Until} {
		t, err := moment(v, name, time.Time{})
		*to, errs = t, append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return Query{}, fmt.Errorf("journal query: %w: %w", ErrInvalid, err)
	}
	return q, nil
}

// remote reports whether an address is another machine's; a request that came
// by no socket has none.
func remote(addr string) bool {
	if addr == "" {
		return false
	}
	from, err := netip.ParseAddrPort(addr)
	return err != nil || !from.Addr().Unmap().IsLoopback()
}
