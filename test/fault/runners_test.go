package fault

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	typev1 "phasekey.dev/gen/phasekey/type/v1"
	"phasekey.dev/pkg/runner"
	"phasekey.dev/pkg/secret"
)

const (
	// pace is how often a runner uses what it holds.
	pace = 100 * time.Millisecond
	// atHand is how long a runner may take to find what it holds: it must be there.
	atHand = time.Second
	// jobLife is the life of grants by which a client secret is held, job how long it is worked with.
	jobLife = 40 * time.Second
	job     = 15 * time.Second
)

// judge collects what must not be.
type judge struct {
	mu       sync.Mutex
	failures []string
	// uses counts uses by material, versions by material, integration and version.
	uses     map[string]int
	versions map[use]int
}

// use is what is used; users has no version.
type use struct {
	material, integration string
	version               int64
}

// users counts the uses of each integration's materials.
func (j *judge) users() map[use]int {
	j.mu.Lock()
	defer j.mu.Unlock()
	out := map[use]int{}
	for u, n := range j.versions {
		u.version = 0
		out[u] += n
	}
	return out
}

func (j *judge) fail(format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.failures) < 20 {
		j.failures = append(j.failures, time.Now().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
	}
}

func (j *judge) used(material string, i *integration, version int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.uses == nil {
		j.uses, j.versions = map[string]int{}, map[use]int{}
	}
	j.uses[material]++
	j.versions[use{material, i.name, version}]++
}

// pronounce fails the test with what was found since the last time.
func (j *judge) pronounce(t *testing.T) {
	t.Helper()
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, f := range j.failures {
		t.Error(f)
	}
	j.failures = nil
}

// work has runners use every integration until the test ends or stop is called: its tokens all the time in one long run, its secret in one short job after
// another, or its assertions in a long run.
func (w *world) work(t *testing.T) (stop func()) {
	t.Helper()
	return w.workOn(t, func(ctx context.Context, conn *grpc.ClientConn, i *integration) {
		for n := 0; ctx.Err() == nil; n++ {
			w.job(ctx, conn, i, fmt.Sprintf("job-%d", n), jobLife, job)
		}
	})
}

// workOn is work whose jobs with secrets are others: jobs is called for each integration that has one.
func (w *world) workOn(t *testing.T, jobs func(ctx context.Context, conn *grpc.ClientConn, i *integration)) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	conn := w.runners(t)
	for _, i := range w.integrations {
		all.Go(func() {
			w.run(ctx, conn, i, typev1.Material_MATERIAL_ACCESS_TOKEN, "long", time.Hour, w.useToken)
		})
		if i.federated {
			all.Go(func() {
				w.run(ctx, conn, i, typev1.Material_MATERIAL_FEDERATED_TOKEN, "without-secret", time.Hour, w.useAssertion)
			})
			continue
		}
		all.Go(func() { jobs(ctx, conn, i) })
	}
	stop = func() {
		cancel()
		all.Wait()
	}
	t.Cleanup(stop)
	return stop
}

// job uses an integration's secret for a while, by a grant that lives longer.
func (w *world) job(ctx context.Context, conn *grpc.ClientConn, i *integration, run string, life, while time.Duration) {
	w.run(ctx, conn, i, typev1.Material_MATERIAL_CLIENT_SECRET, run, life, func(ctx context.Context, i *integration, r *runner.Runner) {
		ctx, done := context.WithTimeout(ctx, while)
		defer done()
		w.useSecret(ctx, i, r)
	})
}

// run has a runner follow an integration by a grant of its own, for as long as with takes.
func (w *world) run(ctx context.Context, conn *grpc.ClientConn, i *integration, material typev1.Material, name string, life time.Duration,
	with func(ctx context.Context, i *integration, r *runner.Runner),
) {
	grant, err := w.grant(ctx, i, name, life)
	if err != nil {
		return // the test ends
	}
	r, err := runner.New(runner.Config{Conn: conn, Grant: secret.New(grant.GetToken()), Material: material, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		w.judge.fail("runner on %s: %v", i.name, err)
		return
	}
	following, done := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() {
		if err := r.Run(following); err != nil {
			w.judge.fail("runner on %s: %v", i.name, err)
		}
	})
	with(following, i, r)
	done()
	running.Wait()
}

// rest waits for a moment, and tells whether ctx goes on.
func rest(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(pace):
		return true
	}
}

// held is what a runner holds. The first time it waits; later it must be there at once.
func held(ctx context.Context, r *runner.Runner, first bool) (runner.Credential, error) {
	if !first {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, atHand)
		defer cancel()
	}
	return r.Credential(ctx)
}

// useToken reads the integration's subscription with the token that the runner holds, again and again.
func (w *world) useToken(ctx context.Context, i *integration, r *runner.Runner) {
	for first := true; rest(ctx); first = false {
		c, err := held(ctx, r, first)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			w.judge.fail("a runner of %s has no token: %v", i.name, err)
			continue
		}
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, w.Origin+"/subscriptions/"+i.subscription+"?api-version=2022-12-01", nil)
		if err != nil {
			w.judge.fail("%v", err)
			return
		}
		request.Header.Set("Authorization", "Bearer "+c.Token.Expose())
		status, body, err := w.Do(request)
		switch {
		case ctx.Err() != nil:
		case err != nil || status != http.StatusOK:
			w.judge.fail("Resource Manager refuses a token of version %d of %s that is good until %s: %d %s %v", c.Version, i.name, c.ExpireTime.Format(time.RFC3339), status, body, err)
		default:
			w.judge.used("token", i, c.Version)
		}
	}
}

// useSecret asks for tokens with the secret that the runner was given first, as a program does that was started with it, and with the newest one.
func (w *world) useSecret(ctx context.Context, i *integration, r *runner.Runner) {
	var began runner.Credential
	for first := true; rest(ctx); first = false {
		newest, err := held(ctx, r, first)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			w.judge.fail("a runner of %s has no secret: %v", i.name, err)
			return
		}
		if first {
			began = newest
		}
		for _, c := range []runner.Credential{began, newest} {
			if !w.exchange(ctx, i, "secret", c, url.Values{"client_secret": {c.ClientSecret.Expose()}}) {
				return
			}
		}
	}
}

// exchange asks for a token with what a lease holds, and tells whether there was one.
func (w *world) exchange(ctx context.Context, i *integration, material string, c runner.Credential, form url.Values) bool {
	form.Set("client_id", i.clientID)
	form.Set("grant_type", "client_credentials")
	form.Set("scope", "https://management.azure.com/.default")
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, w.Origin+"/"+i.tenant+"/oauth2/v2.0/token", strings.NewReader(form.Encode()))
	if err != nil {
		w.judge.fail("%v", err)
		return false
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	status, body, err := w.Do(request)
	var answer struct {
		Description string `json:"error_description"`
	}
	_ = json.Unmarshal(body, &answer) // of a refusal
	switch {
	case ctx.Err() != nil:
		return false
	case err != nil || status != http.StatusOK:
		w.judge.fail("Entra ID refuses the %s of version %d of %s, which a lease holds: %d %s %v", material, c.Version, i.name, status, answer.Description, err)
		return false
	}
	w.judge.used(material, i, c.Version)
	return true
}
