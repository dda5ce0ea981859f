package entrasim_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"

	"phasekey.dev/pkg/entrasim"
)

// BenchmarkApplications loads 100,000 applications, each with a secret and a
// principal, by requests as a client makes them, and fails when they take more
// than a GiB.
func BenchmarkApplications(b *testing.B) {
	const n, limit = 20_000, 1 << 30
	for b.Loop() {
		sim, p := benchmarked(b, entrasim.Config{Lags: entrasim.Lag(1, 2)})
		before := heap()
		load := newLoader(b, sim, p)
		for i := range n {
			load.application(i)
		}
		grown := heap() - before
		b.ReportMetric(float64(grown)/n, "bytes/application")
		b.ReportMetric(float64(grown)/(1<<20), "MiB")
		if grown > limit {
			b.Errorf("%d applications take %d bytes, more than %d", n, grown, limit)
		}
		if err := sim.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// heap is what is in use once the garbage is gone.
func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// loader makes applications by requests.
type loader struct {
	b      *testing.B
	client *http.Client
	graph  string
	bearer string
}

func newLoader(b *testing.B, sim *entrasim.Simulator, p entrasim.Platform) *loader {
	b.Helper()
	l := &loader{b: b, client: &http.Client{Transport: sim.Transport()}, graph: sim.Endpoints().Graph + "/v1.0"}
	var granted struct {
		Token string `json:"access_token"`
	}
	form := credentials(p.ClientID, p.ClientSecret, graphScope).Encode()
	l.send(sim.Endpoints().Login+"/"+homeID+"/oauth2/v2.0/token", "application/x-www-form-urlencoded", form, &granted)
	l.bearer = granted.Token
	return l
}

func (l *loader) application(n int) {
	l.b.Helper()
	var made struct{ ID, AppID string }
	l.send(l.graph+"/applications", "application/json", strings.Replace(appBody, "network-read", fmt.Sprintf("network-read-%d", n), 1), &made)
	l.send(l.graph+"/applications/"+made.ID+"/addPassword", "application/json", `{"passwordCredential":{"displayName":"one"}}`, &struct{}{})
	l.send(l.graph+"/servicePrincipals", "application/json", `{"appId":"`+made.AppID+`"}`, &struct{}{})
}

func (l *loader) send(where, kind, body string, into any) {
	l.b.Helper()
	r, err := http.NewRequestWithContext(l.b.Context(), http.MethodPost, where, strings.NewReader(body))
	if err != nil {
		l.b.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+l.bearer)
	r.Header.Set("Content-Type", kind)
	resp, err := l.client.Do(r)
	if err != nil {
		l.b.Fatal(err)
	}
	text, err := io.ReadAll(resp.Body)
	if err = errors.Join(err, resp.Body.Close()); err != nil || resp.StatusCode >= 300 {
		l.b.Fatalf("%s: %d %s %v", where, resp.StatusCode, text, err)
	}
	if err := json.Unmarshal(text, into); err != nil {
		l.b.Fatal(err)
	}
}
