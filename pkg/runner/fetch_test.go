package runner_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	errorv1 "phasekey.dev/gen/phasekey/error/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/rpcerr"
	"phasekey.dev/pkg/runner"
)

// fetched is what the vault answers for another audience.
func fetched(req *vaultv1.FetchCredentialRequest, token string, life time.Duration) *vaultv1.Credential {
	return with(credential(100), func(c *vaultv1.Credential) {
		c.RefreshTime = timestamppb.New(time.Now().Add(life / 2))
		c.ExpireTime = timestamppb.New(time.Now().Add(life))
		c.Material = &vaultv1.Credential_AccessToken{AccessToken: &vaultv1.AccessToken{Audience: req.GetAudience(), Token: tokenCanary + token}}
	})
}

func TestRunner_OtherAudiences(t *testing.T) {
	const keyVault = "https://vault.azure.net"
	unavailable := status.Error(codes.Unavailable, "down")

	bubble := func(name string, do func(*testing.T, *world)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				defer w.stop()
				accept().do(w)
				send(1).do(w)
				synctest.Wait()
				do(t, w)
			})
		})
	}
	get := func(t *testing.T, w *world, audience string) string {
		t.Helper()
		// More than the longest outage here and the longest wait that may follow it, drawn from up to half a minute.
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		c, err := w.runner.CredentialFor(ctx, audience)
		if err != nil {
			t.Fatalf("%s: %v", audience, err)
		}
		return strings.TrimPrefix(c.Token.Expose(), tokenCanary)
	}

	bubble("an application's ID, in letters of either case", func(t *testing.T, w *world) {
		w.vault.OnFetch(func(req *vaultv1.FetchCredentialRequest) (*vaultv1.Credential, error) {
			return fetched(req, "aks", time.Hour), nil
		})
		for _, name := range []string{"6dae42f8-4368-4678-94ff-3960e28e3630", "6DAE42F8-4368-4678-94FF-3960E28E3630"} {
			if got := get(t, w, name); got != "aks" {
				t.Errorf("%s: %s", name, got)
			}
		}
		if fetches := w.vault.Fetches(); len(fetches) != 1 || fetches[0].GetAudience() != "6dae42f8-4368-4678-94ff-3960e28e3630" {
			t.Errorf("asked for %v", fetches)
		}
		if _, err := w.runner.CredentialFor(t.Context(), "6dae42f8-4368-4678-94ff"); !errors.Is(err, runner.ErrAudience) {
			t.Errorf("half an ID: %v", err)
		}
	})
	bubble("the streamed one by all of its names", func(t *testing.T, w *world) {
		for _, name := range []string{resourceManager, resourceManager + "/", "https://management.core.windows.net/"} {
			if got := get(t, w, name); got != "1" {
				t.Errorf("%s: %s", name, got)
			}
		}
		if n := len(w.vault.Fetches()); n != 0 {
			t.Errorf("%d fetches", n)
		}
	})
	bubble("one call however many ask, kept until its refresh time", func(t *testing.T, w *world) {
		calls := 0
		w.vault.OnFetch(func(req *vaultv1.FetchCredentialRequest) (*vaultv1.Credential, error) {
			calls++
			time.Sleep(time.Second)
			return fetched(req, fmt.Sprint("kv", calls), time.Hour), nil
		})
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				if got := get(t, w, keyVault+"/"); got != "kv1" {
					t.Errorf("got %s", got)
				}
			})
		}
		all.Wait()
		time.Sleep(29 * time.Minute)
		if got := get(t, w, keyVault); got != "kv1" {
			t.Errorf("before its refresh time: %s", got)
		}
		time.Sleep(2 * time.Minute)
		if got := get(t, w, keyVault); got != "kv2" {
			t.Errorf("after its refresh time: %s", got)
		}
		fetches := w.vault.Fetches()
		if len(fetches) != 2 || fetches[0].GetInstanceId() != w.s.Request.GetInstanceId() || fetches[0].GetAudience() != keyVault {
			t.Errorf("fetches: %v", fetches)
		}
	})
	bubble("kept past its refresh time while the vault is away", func(t *testing.T, w *world) {
		down := false
		w.vault.OnFetch(func(req *vaultv1.FetchCredentialRequest) (*vaultv1.Credential, error) {
			if down {
				return nil, unavailable
			}
			return fetched(req, "kv", time.Hour), nil
		})
		get(t, w, keyVault)
		down = true
		time.Sleep(50 * time.Minute)
		if got := get(t, w, keyVault); got != "kv" {
			t.Errorf("got %s", got)
		}
		time.Sleep(9*time.Minute + 50*time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		time.Sleep(20 * time.Second)
		if c, err := w.runner.CredentialFor(ctx, keyVault); err == nil {
			t.Errorf("got %v after its end", c.ExpireTime)
		}
	})
	bubble("an outage is waited for", func(t *testing.T, w *world) {
		up := time.Now().Add(10 * time.Second)
		w.vault.OnFetch(func(req *vaultv1.FetchCredentialRequest) (*vaultv1.Credential, error) {
			if time.Now().Before(up) {
				return nil, unavailable
			}
			return fetched(req, "kv", time.Hour), nil
		})
		if got := get(t, w, keyVault); got != "kv" {
			t.Errorf("got %s", got)
		}
	})
	bubble("fetched anew after a rotation, once", func(t *testing.T, w *world) {
		w.vault.OnFetch(func(req *vaultv1.FetchCredentialRequest) (*vaultv1.Credential, error) {
			return fetched(req, "kv", time.Hour), nil
		})
		get(t, w, keyVault)
		w.s.Send(with(credential(2), func(c *vaultv1.Credential) { c.CredentialVersion = 2 }))
		synctest.Wait()
		get(t, w, keyVault)
		get(t, w, keyVault)
		if n := len(w.vault.Fetches()); n != 2 {
			t.Errorf("%d fetches, want 2", n)
		}
	})
	bubble("a refusal is passed on", func(t *testing.T, w *world) {
		_, err := w.runner.CredentialFor(t.Context(), keyVault)
		if rpcerr.Reason(err) != "AUDIENCE_NOT_ALLOWED" || len(w.vault.Fetches()) != 1 {
			t.Errorf("got %v after %d fetches", err, len(w.vault.Fetches()))
		}
		holds(1).do(w)
	})
	bubble("a token for something else is not taken", func(t *testing.T, w *world) {
		w.vault.OnFetch(func(req *vaultv1.FetchCredentialRequest) (*vaultv1.Credential, error) {
			req.Audience = "https://elsewhere.example"
			return fetched(req, "kv", time.Hour), nil
		})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if _, err := w.runner.CredentialFor(ctx, keyVault); err == nil {
			t.Error("it was taken")
		}
	})
	bubble("a final refusal ends everything", func(t *testing.T, w *world) {
		w.vault.OnFetch(func(*vaultv1.FetchCredentialRequest) (*vaultv1.Credential, error) {
			return nil, vaultError(codes.PermissionDenied, errorv1.ErrorReason_ERROR_REASON_DETACHED)
		})
		var final *runner.FinalError
		if _, err := w.runner.CredentialFor(t.Context(), keyVault); !errors.As(err, &final) {
			t.Errorf("got %v", err)
		}
		over("DETACHED").do(w)
	})
	bubble("nonsense stays here", func(t *testing.T, w *world) {
		for _, audience := range []string{"", "vault.azure.net", "http://vault.azure.net", "https://a/b", "https://-a", "https://" + strings.Repeat("a", 200)} {
			if _, err := w.runner.CredentialFor(t.Context(), audience); !errors.Is(err, runner.ErrAudience) {
				t.Errorf("%q: %v", audience, err)
			}
		}
		if n := len(w.vault.Fetches()); n != 0 {
			t.Errorf("%d fetches", n)
		}
	})
	bubble("a refusal is repeated without a call for a while", func(t *testing.T, w *world) {
		for range 100 {
			if _, err := w.runner.CredentialFor(t.Context(), keyVault); rpcerr.Reason(err) != "AUDIENCE_NOT_ALLOWED" {
				t.Fatalf("got %v", err)
			}
			time.Sleep(100 * time.Millisecond)
		}
		if n := len(w.vault.Fetches()); n != 1 {
			t.Errorf("%d fetches in ten seconds", n)
		}
		w.vault.OnFetch(func(req *vaultv1.FetchCredentialRequest) (*vaultv1.Credential, error) {
			return fetched(req, "kv", time.Hour), nil
		})
		if got := get(t, w, keyVault); got != "kv" {
			t.Errorf("after it was allowed: %s", got)
		}
	})
	bubble("a child that invents names does not have the vault asked without end, nor keep others out", func(t *testing.T, w *world) {
		for n := range 1000 {
			_, _ = w.runner.CredentialFor(t.Context(), fmt.Sprintf("https://n%d.example", n))
			time.Sleep(100 * time.Millisecond)
		}
		if n := len(w.vault.Fetches()); n > 400 {
			t.Errorf("%d fetches in a hundred seconds", n)
		}
		time.Sleep(time.Minute)
		w.vault.OnFetch(func(req *vaultv1.FetchCredentialRequest) (*vaultv1.Credential, error) {
			return fetched(req, "kv", time.Hour), nil
		})
		if got := get(t, w, keyVault); got != "kv" {
			t.Errorf("an allowed one: %s", got)
		}
	})
	bubble("a child cannot fill the memory", func(t *testing.T, w *world) {
		var err error
		for n := 0; n < 100 && !errors.Is(err, runner.ErrTooManyAudiences); n++ {
			_, err = w.runner.CredentialFor(t.Context(), fmt.Sprintf("https://n%d.example", n))
		}
		if !errors.Is(err, runner.ErrTooManyAudiences) {
			t.Errorf("got %v", err)
		}
	})
}
