package consent_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/url"
	"testing"

	"github.com/google/go-cmp/cmp"

	"phasekey.dev/services/broker/internal/consent"
)

func key(t *testing.T, b byte) consent.Key {
	t.Helper()
	k, err := consent.NewKey(bytes.Repeat([]byte{b}, consent.KeySize))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func links(t *testing.T) consent.Links {
	t.Helper()
	return consent.Links{
		Key: key(t, 1),
		Clouds: map[string]consent.Cloud{
			"public": {LoginURL: "https://login.microsoftonline.com", GraphURL: "https://graph.microsoft.com"},
			"china":  {LoginURL: "https://login.partner.microsoftonline.cn", GraphURL: "https://microsoftgraph.chinacloudapi.cn"},
		},
		RedirectURI: "https://broker.example.com/consent/callback",
	}
}

func TestLinks_URIAsksForAdminConsentInTheTenantsCloud(t *testing.T) {
	for _, tc := range []struct{ cloud, host, scope string }{
		{"public", "login.microsoftonline.com", "https://graph.microsoft.com/.default"},
		{"china", "login.partner.microsoftonline.cn", "https://microsoftgraph.chinacloudapi.cn/.default"},
	} {
		t.Run(tc.cloud, func(t *testing.T) {
			s := session(func(s *consent.Session) { awaiting(s); s.Cloud = tc.cloud })
			got, err := links(t).URI(s)
			if err != nil {
				t.Fatal(err)
			}
			u, err := url.Parse(got)
			if err != nil {
				t.Fatal(err)
			}
			if u.Scheme != "https" || u.Host != tc.host || u.Path != "/tenant/v2.0/adminconsent" {
				t.Errorf("link goes to %s://%s%s", u.Scheme, u.Host, u.Path)
			}
			want := url.Values{
				"client_id": {"client"}, "scope": {tc.scope}, "redirect_uri": {"https://broker.example.com/consent/callback"},
				"state": {key(t, 1).StateOf(s)},
			}
			if diff := cmp.Diff(want, u.Query()); diff != "" {
				t.Errorf("query (-want +got):\n%s", diff)
			}
		})
	}
}

func TestLinks_URIOnlyWhileConsentIsAwaited(t *testing.T) {
	for _, state := range []consent.State{consent.WaitingForApplication, consent.Completed, consent.Expired} {
		got, err := links(t).URI(session(func(s *consent.Session) { awaiting(s); s.State = state }))
		if got != "" || err != nil {
			t.Errorf("state %d: link %q, error %v", state, got, err)
		}
	}
}

func TestLinks_URIOfAnUnknownCloud(t *testing.T) {
	_, err := links(t).URI(session(func(s *consent.Session) { awaiting(s); s.Cloud = "elsewhere" }))
	if !errors.Is(err, consent.ErrUnknownCloud) {
		t.Errorf("error %v", err)
	}
}

func TestKey_StateDependsOnAllThatItShould(t *testing.T) {
	base := session(nil)
	same := key(t, 1).StateOf(base)
	if again := key(t, 1).StateOf(base); again != same {
		t.Errorf("the state cannot be shown again: %q, then %q", same, again)
	}
	if len(same) != 43 { // 32 bytes, base64url
		t.Errorf("state %q has %d characters", same, len(same))
	}
	for name, other := range map[string]string{
		"another key":     key(t, 2).StateOf(base),
		"another nonce":   key(t, 1).StateOf(session(func(s *consent.Session) { s.Nonce[31] = 1 })),
		"another session": key(t, 1).StateOf(session(func(s *consent.Session) { s.Name.ID = "s2" })),
		"another account": key(t, 1).StateOf(session(func(s *consent.Session) { s.Name.Account = "umbrella" })),
	} {
		if other == same {
			t.Errorf("%s has the same state", name)
		}
	}
	if bytes.Equal(consent.HashState(same), []byte(same)) || len(consent.HashState(same)) != 32 {
		t.Error("the hash of a state is not a hash")
	}
}

func TestKey_IsHiddenAndOfTheRightLength(t *testing.T) {
	for _, n := range []int{0, 31, 33} {
		if _, err := consent.NewKey(make([]byte, n)); !errors.Is(err, consent.ErrKey) {
			t.Errorf("%d bytes: error %v", n, err)
		}
	}
	raw := []byte("0123456789abcdef0123456789abcdef")
	k, err := consent.NewKey(raw)
	if err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x"} {
		if got := fmt.Sprintf(verb, consent.Links{Key: k}); bytes.Contains([]byte(got), raw) || bytes.Contains([]byte(got), []byte("3031323334")) {
			t.Errorf("%s shows the key: %s", verb, got)
		}
	}
	if bytes.Equal(k.Fingerprint(), key(t, 1).Fingerprint()) {
		t.Error("two keys have one fingerprint")
	}
}
