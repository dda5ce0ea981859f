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
	"time"

	"phasekey.dev/pkg/entrasim"
)

// BenchmarkApplications loads 100,000 applications, each with a secret and a
// principal, by requests as a client makes them, and fails when they take more
// than a GiB.
func BenchmarkApplications(b *testing.B) {
	const n, limit = 100_000, 1 << 30
	for b.Loop() {
		sim, p := benchmarked(b, entrasim.Config{Lags: entrasim.Lag(1, 2), Budgets: entrasim.Budgets{Unlimited: true}})
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

// BenchmarkEvidence asks what a judge asks after every event, of a journal that
// is all but empty and of one with a million changes of a thousand applications,
// and fails when an answer about now takes ten times as long of the large one,
// or a change more than half a KiB.
func BenchmarkEvidence(b *testing.B) {
	const applications, rotations, most, largest = 1000, 500, 10, 512
	lag := entrasim.Range{Min: time.Second, Max: time.Minute}
	sim, p := benchmarked(b, entrasim.Config{Lags: entrasim.Lags{Secret: lag, Removal: lag}, Budgets: entrasim.Budgets{Unlimited: true}, JournalRequests: 1000})
	load := newLoader(b, sim, p)
	clients := make([]string, applications)
	for i := range clients {
		clients[i], _ = load.application(i)
	}
	start := time.Now().Add(-366 * 24 * time.Hour)
	rotate := func(from, to int) {
		for i := from; i < to; i++ {
			for _, id := range clients {
				if err := sim.Rotate(id, start.Add(time.Duration(i)*365*24*time.Hour/rotations)); err != nil {
					b.Fatal(err)
				}
			}
		}
	}
	next := 0
	client := func() string { next++; return clients[next%applications] }
	key := func(id string) string {
		all, err := sim.Credentials(id, time.Now())
		if err != nil || len(all) != 1 {
			b.Fatalf("application %s has %d credentials: %v", id, len(all), err)
		}
		return all[0].KeyID
	}
	keys := make(map[string]string)
	questions := []struct {
		name string
		ask  func() error
	}{
		{"credentials_now", func() error { _, err := sim.Credentials(client(), time.Now()); return err }},
		{"secret_now", func() error { id := client(); _, err := sim.SecretState(homeID, id, keys[id]); return err }},
		{"token_now", func() error { sim.TokenState(load.bearer); return nil }},
		{"writes_of_a_day", func() error { _, err := sim.Writes(client(), time.Now().Add(-24*time.Hour)); return err }},
		{"journal_from_cursor", func() error { sim.Journal(entrasim.Query{After: sim.LastSeq() - 1}); return nil }},
		{"credentials_half_a_year_ago", func() error { _, err := sim.Credentials(client(), time.Now().Add(-183*24*time.Hour)); return err }},
	}
	took := make(map[string]float64)
	ask := func(entries string) {
		for _, id := range clients {
			keys[id] = key(id)
		}
		for _, q := range questions {
			b.Run(q.name+"/changes="+entries, func(b *testing.B) {
				for b.Loop() {
					if err := q.ask(); err != nil {
						b.Fatal(err)
					}
				}
				took[q.name+entries] = float64(b.Elapsed().Nanoseconds()) / float64(b.N)
			})
		}
	}
	rotate(0, 1)
	ask("5k")
	before := heap()
	rotate(1, rotations)
	grown := heap() - before
	ask("1M")
	for _, q := range questions[:5] {
		if took[q.name+"1M"] > most*took[q.name+"5k"] {
			b.Errorf("%s takes %.0f ns of a million changes, and %.0f of five thousand", q.name, took[q.name+"1M"], took[q.name+"5k"])
		}
	}
	b.Run("memory", func(b *testing.B) {
		each := float64(grown) / (2 * applications * (rotations - 1))
		b.ReportMetric(each, "bytes/change")
		if each > largest {
			b.Errorf("a change takes %.0f bytes, more than %d", each, largest)
		}
	})
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

func (l *loader) application(n int) (clientID, keyID string) {
	l.b.Helper()
	var made struct{ ID, AppID string }
	var added struct{ KeyID string }
	l.send(l.graph+"/applications", "application/json", strings.Replace(appBody, "network-read", fmt.Sprintf("network-read-%d", n), 1), &made)
	l.send(l.graph+"/applications/"+made.ID+"/addPassword", "application/json", `{"passwordCredential":{"displayName":"one"}}`, &added)
	l.send(l.graph+"/servicePrincipals", "application/json", `{"appId":"`+made.AppID+`"}`, &struct{}{})
	return made.AppID, added.KeyID
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
