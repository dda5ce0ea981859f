package grant_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"phasekey.dev/services/vault/internal/grant"
)

func TestMint_TokensAreRecognisedAndHidden(t *testing.T) {
	token, hash := grant.Mint()
	text := token.Expose()
	if !strings.HasPrefix(text, "pkg_") || len(text) != 53 {
		t.Errorf("token %q, want pkg_ and 49 more", text)
	}
	if strings.Contains(fmt.Sprintf("%v %+v %#v", token, token, token), text) {
		t.Error("token prints itself")
	}
	got, err := grant.ParseToken(text)
	if err != nil || got != hash || hash != grant.Hash(sha256.Sum256([]byte(text))) {
		t.Errorf("ParseToken: hash equal %v, error %v", got == hash, err)
	}
	other, otherHash := grant.Mint()
	if other.Equal(token) || otherHash == hash {
		t.Error("two tokens are the same")
	}
}

// What operators are told to look for is what there is, and stays so: their scanners are elsewhere.
func TestTokens_AreWhatTheOperatorsPageSays(t *testing.T) {
	text, err := os.ReadFile("../../../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	pattern := regexp.MustCompile(`(?m)^\\bpkg_.*$`).FindString(string(text))
	expression, err := regexp.Compile(pattern)
	if err != nil || pattern == "" {
		t.Fatalf("the page has %q: %v", pattern, err)
	}
	const known = "pkg_00000000000000000000000000000000000000000013TVTGd"
	for range 1000 {
		token, _ := grant.Mint()
		if found := expression.FindString("grant=" + token.Expose() + "\n"); found != token.Expose() {
			t.Fatalf("%s finds %q in a token's line", pattern, found)
		}
	}
	if _, err := grant.ParseToken(known); err != nil {
		t.Errorf("a token of old: %v", err)
	}
}

func TestParseToken_RefusesWhatIsNone(t *testing.T) {
	token, _ := grant.Mint()
	text := token.Expose()
	swapped := []byte(text)
	swapped[10], swapped[11] = 'A', 'B'
	if text[10] == 'A' && text[11] == 'B' {
		swapped[10] = 'C'
	}
	last := text[:len(text)-1] + "0"
	if last == text {
		last = text[:len(text)-1] + "1"
	}
	for name, bad := range map[string]string{
		"empty":             "",
		"prefix only":       "pkg_",
		"other prefix":      "pkh_" + text[4:],
		"too short":         text[:len(text)-1],
		"too long":          text + "0",
		"wrong digit":       string(swapped),
		"wrong checksum":    last,
		"foreign character": text[:20] + "-" + text[21:],
		"line break":        text[:len(text)-1] + "\n",
		"not ascii":         text[:20] + "é" + text[22:],
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := grant.ParseToken(bad); !errors.Is(err, grant.ErrUnknown) {
				t.Errorf("error %v, want ErrUnknown", err)
			}
		})
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add("")
	f.Add("pkg_")
	f.Add("pkg_0000000000000000000000000000000000000000000000000")
	f.Add("pkg_" + strings.Repeat("z", 49))
	token, _ := grant.Mint()
	f.Add(token.Expose())
	f.Fuzz(func(t *testing.T, text string) {
		hash, err := grant.ParseToken(text)
		if err != nil {
			// The very error, with nothing of the text in it.
			if err != grant.ErrUnknown { //nolint:errorlint // that it is not wrapped is the point
				t.Fatalf("error %v", err)
			}
			return
		}
		if len(text) != 53 || hash != grant.Hash(sha256.Sum256([]byte(text))) {
			t.Fatal("accepted what no Mint makes")
		}
	})
}
