package lease_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"phasekey.dev/services/vault/internal/lease"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func held(instance string, closed bool) lease.Lease {
	l := lease.Lease{UID: "l-" + instance, GrantUID: "g", InstanceID: instance, Generation: 3, OpenTime: now.Add(-time.Hour), DeliverTime: now.Add(-time.Minute)}
	if closed {
		l.CloseTime = now.Add(-time.Second)
	}
	return l
}

func TestAdmit(t *testing.T) {
	four := []lease.Lease{held("a", false), held("b", false), held("c", false), held("d", false)}
	resumed := held("b", false)
	resumed.Generation, resumed.DeliverTime = 4, now
	fresh := lease.Lease{UID: "new", GrantUID: "g", InstanceID: "e", Generation: 1, OpenTime: now, DeliverTime: now}
	for _, tt := range []struct {
		name     string
		held     []lease.Lease
		instance string
		want     lease.Lease
		opened   bool
		err      error
	}{
		{"first", nil, "e", fresh, true, nil},
		{"fourth", four[:3], "e", fresh, true, nil},
		{"fifth", four, "e", lease.Lease{}, false, lease.ErrTooMany},
		{"resumed among four", four, "b", resumed, false, nil},
		{"closed ones do not count", []lease.Lease{four[0], four[1], four[2], held("d", true)}, "e", fresh, true, nil},
		{"own one is closed", []lease.Lease{held("e", true)}, "e", lease.Lease{}, false, lease.ErrClosed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, opened, err := lease.Admit(now, tt.held, "new", "g", tt.instance)
			if !errors.Is(err, tt.err) || opened != tt.opened || !cmp.Equal(got, tt.want) {
				t.Errorf("got %+v, %v, %v; want %+v, %v, %v", got, opened, err, tt.want, tt.opened, tt.err)
			}
		})
	}
}

func TestAllowed(t *testing.T) {
	for _, tt := range []struct {
		name          string
		policy        []lease.Material
		token, secret bool
	}{
		{name: "nothing said", token: true},
		{name: "tokens", policy: []lease.Material{lease.AccessToken}, token: true},
		{name: "secrets alone", policy: []lease.Material{lease.ClientSecret}, secret: true},
		{name: "both", policy: []lease.Material{lease.ClientSecret, lease.AccessToken}, token: true, secret: true},
		{name: "one that is not known", policy: []lease.Material{"OF_THE_FUTURE"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if token, secret := lease.Allowed(tt.policy, false, lease.AccessToken), lease.Allowed(tt.policy, false, lease.ClientSecret); token != tt.token || secret != tt.secret {
				t.Errorf("token %t, secret %t", token, secret)
			}
			if lease.Allowed(tt.policy, false, "") || lease.Allowed(tt.policy, true, "") {
				t.Error("no material is allowed")
			}
		})
	}
}

func TestCheckHold(t *testing.T) {
	for end, want := range map[time.Time]error{now: nil, now.Add(-time.Hour): nil, now.Add(time.Microsecond): lease.ErrHoldTooLong} {
		err := lease.CheckHold(end, now)
		if !errors.Is(err, want) || (err == nil) != (want == nil) {
			t.Errorf("until %s: %v, want %v", end, err, want)
		}
		if refusal := (*lease.HoldError)(nil); errors.As(err, &refusal) && !refusal.Latest.Equal(now) {
			t.Errorf("latest %s", refusal.Latest)
		}
	}
}

func TestAllowed_ByKind(t *testing.T) {
	both := []lease.Material{lease.AccessToken, lease.FederatedToken, lease.ClientSecret}
	for _, tt := range []struct {
		name      string
		policy    []lease.Material
		federated bool
		want      []lease.Material
	}{
		{"federated, nothing said", nil, true, []lease.Material{lease.AccessToken, lease.FederatedToken}},
		{"federated, tokens alone", []lease.Material{lease.AccessToken}, true, []lease.Material{lease.AccessToken}},
		{"federated, assertions alone", []lease.Material{lease.FederatedToken}, true, []lease.Material{lease.FederatedToken}},
		{"federated, what was allowed of a secret", both, true, []lease.Material{lease.AccessToken, lease.FederatedToken}},
		{"a secret, what was allowed of a trust", both, false, []lease.Material{lease.AccessToken, lease.ClientSecret}},
		{"a secret, nothing said", nil, false, []lease.Material{lease.AccessToken}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []lease.Material
			for _, m := range both {
				if lease.Allowed(tt.policy, tt.federated, m) {
					got = append(got, m)
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}
