package consent_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/url"
	"testing"

	"github.com/google/go-cmp/cmp"

	"phasekey.dev/pkg/secret"
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
		PublicURL: "https://broker.example.com",
	}
}

func TestLinks_EntraURIAsksForAdminConsentInTheTenantsCloud(t *testing.T) {
	for _, tc := range []struct{ cloud, host, scope string }{
		{"public", "login.microsoftonline.com", "https://graph.microsoft.com/.default"},
		{"china", "login.partner.microsoftonline.cn", "https://microsoftgraph.chinacloudapi.cn/.default"},
	} {
		t.Run(tc.cloud, func(t *testing.T) {
			s := session(func(s *consent.Session) { awaiting(s); s.Cloud = tc.cloud })
			got, err := links(t).EntraURI(s, secret.New("state"))
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
				"client_id": {"client"}, "scope": {tc.scope}, "redirect_uri": {"https://broker.example.com/consent/callback"}, "state": {"state"},
			}
			if diff := cmp.Diff(want, u.Query()); diff != "" {
				t.Errorf("query (-want +got):\n%s", diff)
			}
		})
	}
}

func TestLinks_URIOnlyWhileTheSessionIsOpen(t *testing.T) {
	for state, open := range map[consent.State]bool{
		consent.WaitingForApplication: true, consent.AwaitingConsent: true, consent.Completed: false, consent.Expired: false,
	} {
		s := session(func(s *consent.Session) { awaiting(s); s.State = state })
		page := "https://broker.example.com/consent/" + key(t, 1).LinkOf(s).Expose()
		if got := links(t).PageURI(s); got != page {
			t.Errorf("state %d: page %q, want %q", state, got, page)
		}
		if got := links(t).URI(s); (got == page) != open || (got == "") == open {
			t.Errorf("state %d: link %q", state, got)
		}
	}
}

func TestLinks_EntraURIOfAnUnknownCloud(t *testing.T) {
	_, err := links(t).EntraURI(session(func(s *consent.Session) { awaiting(s); s.Cloud = "elsewhere" }), secret.New("state"))
	if !errors.Is(err, consent.ErrUnknownCloud) {
		t.Errorf("error %v", err)
	}
}

func TestKey_LinkDependsOnAllThatItShould(t *testing.T) {
	base := session(nil)
	same := key(t, 1).LinkOf(base).Expose()
	if again := key(t, 1).LinkOf(base).Expose(); again != same {
		t.Errorf("the link cannot be shown again: %q, then %q", same, again)
	}
	if len(same) != consent.TokenSize {
		t.Errorf("link %q has %d characters", same, len(same))
	}
	for name, other := range map[string]string{
		"another key":     key(t, 2).LinkOf(base).Expose(),
		"another nonce":   key(t, 1).LinkOf(session(func(s *consent.Session) { s.Nonce[31] = 1 })).Expose(),
		"another session": key(t, 1).LinkOf(session(func(s *consent.Session) { s.Name.ID = "s2" })).Expose(),
		"another account": key(t, 1).LinkOf(session(func(s *consent.Session) { s.Name.Account = "umbrella" })).Expose(),
	} {
		if other == same {
			t.Errorf("%s has the same link", name)
		}
	}
	if bytes.Equal(consent.Hash(secret.New(same)), []byte(same)) || len(consent.Hash(secret.New(same))) != 32 {
		t.Error("the hash of a link is not a hash")
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
