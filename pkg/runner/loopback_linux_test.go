package runner_test

import (
	"context"
	"net"
	"net/http"
	"os"
	"runtime"
	"syscall"
	"testing"

	typev1 "phasekey.dev/gen/phasekey/type/v1"
)

// Whoever shows no secret is told by the kernel's word from a process of another user.
func TestLoopback_AnswersNoOtherUser(t *testing.T) {
	e := newEndpoint(t, clientID, typev1.Access_ACCESS_READ)
	if resp, body := e.ask(e.toVM); resp.StatusCode != http.StatusOK {
		t.Fatalf("our own user got %s: %v", resp.Status, body)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: foreign(e)}}
	for name, tt := range map[string]struct {
		change func(*http.Request)
		want   int
	}{
		"without the secret": {e.toVM, http.StatusForbidden},
		"with it":            {func(r *http.Request) { e.toVM(r); r.Header.Set("X-IDENTITY-HEADER", e.env["IDENTITY_HEADER"]) }, http.StatusOK},
	} {
		if resp, body := e.askBy(client, tt.change); resp.StatusCode != tt.want {
			t.Errorf("another user %s got %s: %v", name, resp.Status, body)
		}
	}
}

// foreign dials as another user than the endpoint's: root can be one, and anybody else's endpoint is made another's.
func foreign(e *endpoint) func(ctx context.Context, network, addr string) (net.Conn, error) {
	const nobody = 65534
	if os.Getuid() != 0 {
		e.loopback.OwnedBy(os.Getuid() + 1)
		return new(net.Dialer).DialContext
	}
	return func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread() // for good: the thread ends with its goroutine
			if err = syscall.Setfsuid(nobody); err == nil {
				conn, err = new(net.Dialer).DialContext(ctx, network, addr)
			}
		}()
		<-done
		return conn, err
	}
}
