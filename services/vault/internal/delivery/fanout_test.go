package delivery_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"phasekey.dev/pkg/secret"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/delivery"
	"phasekey.dev/services/vault/internal/grant"
	"phasekey.dev/services/vault/internal/issuer"
	"phasekey.dev/services/vault/internal/lease"
	"phasekey.dev/services/vault/internal/store"
)

// crowd is many streams of a world's grant, each of another instance.
type crowd struct {
	w       *world
	readers []*reader
	leave   context.CancelFunc
}

type reader struct {
	mu    sync.Mutex
	block chan struct{} // when not nil, it waits for it with each message
	taken []string
	last  delivery.Delivery
	err   error
}

// slow has it read nothing until what is returned is called.
func (r *reader) slow() (again func()) {
	block := make(chan struct{})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.block = block
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.block = nil
		close(block)
	}
}

func (r *reader) holds() delivery.Delivery {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last
}

func (r *reader) ended() (taken []string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.taken, r.err
}

func (w *world) recorded() (all []store.Delivery) {
	w.store.do(func(f *fakeStore) { all = slices.Clone(f.delivered) })
	return all
}

// gather opens so many streams, by requests that may be changed.
func (w *world) gather(n int, change func(i int, r *delivery.Request)) *crowd {
	ctx, leave := context.WithCancel(w.t.Context())
	c := &crowd{w: w, leave: leave}
	for i := range n {
		r := &reader{}
		c.readers = append(c.readers, r)
		request := w.request
		request.InstanceID = fmt.Sprintf("instance-%02d", i)
		request.Caller = grant.Caller{RequestID: fmt.Sprint("call-", i)}
		if change != nil {
			change(i, &request)
		}
		go func() {
			err := w.hub.Stream(ctx, request, func(d delivery.Delivery) error {
				r.mu.Lock()
				block := r.block
				r.mu.Unlock()
				if block != nil {
					<-block
				}
				r.mu.Lock()
				defer r.mu.Unlock()
				r.taken, r.last = append(r.taken, fmt.Sprintf("%s v%d", d.Reason, d.Version)), d
				return nil
			}, func(time.Duration) error { return nil })
			r.mu.Lock()
			defer r.mu.Unlock()
			r.err = err
		}()
	}
	// Each looks once when the changes are first read.
	w.after(2 * time.Second)
	c.took("at once", "INITIAL v1")
	w.store.do(func(f *fakeStore) { f.reads = 0 })
	return c
}

// inCrowd runs a case in a bubble on a world with so many streams.
func inCrowd(t *testing.T, n int, test func(w *world, c *crowd)) {
	t.Helper()
	inBubble(t, func(w *world) {
		c := w.gather(n, nil)
		defer c.leave()
		test(w, c)
	})
}

// took checks what the readers took since the last call; all of them, or those that are named.
func (c *crowd) took(step, want string, which ...int) {
	c.w.t.Helper()
	for i, r := range c.readers {
		if len(which) > 0 && !slices.Contains(which, i) {
			continue
		}
		r.mu.Lock()
		if have := strings.Join(r.taken, ", "); have != want || r.err != nil {
			c.w.t.Errorf("%s: stream %d took %q, want %q; %v", step, i, have, want, r.err)
		}
		r.taken = nil
		r.mu.Unlock()
	}
}

// change changes the store, and the hub hears of it at once.
func (w *world) change(integrationUID, grantUID string, change func(f *fakeStore)) {
	w.store.change(integrationUID, grantUID, change)
	w.hub.Nudge()
	synctest.Wait()
}

// holdFanOuts has those that begin from now on wait until what is returned is called.
func (w *world) holdFanOuts() (release func()) {
	held := make(chan struct{})
	w.store.do(func(f *fakeStore) { f.fanOutWaits = held })
	return func() { close(held) }
}

func (w *world) rotate(number int64) {
	w.change("uid", "", func(f *fakeStore) { f.versions = []store.Live{live(number), retiring(number - 1)} })
}

// fanned checks how many fan-outs and reads there have been since the last call.
func (w *world) fanned(step string, fanOuts, reads int) {
	w.t.Helper()
	w.store.do(func(f *fakeStore) {
		if f.fanOuts != fanOuts || f.reads != reads {
			w.t.Errorf("%s: %d fan-outs and %d reads, want %d and %d", step, f.fanOuts, f.reads, fanOuts, reads)
		}
		f.fanOuts, f.reads = 0, 0
	})
}

// A rotation is one look, one token and one record for all who hold the same; each is given it as by itself, and as often as there is a rotation.
func TestFanOut_GivesARotationToAllAtOnce(t *testing.T) {
	inCrowd(t, 20, func(w *world, c *crowd) {
		for number := int64(2); number < 5; number++ {
			before := len(w.recorded())
			w.rotate(number)
			c.took("rotation", fmt.Sprint("ROTATED v", number))
			w.fanned("rotation", 1, 1)
			seen := map[string]bool{}
			all := w.recorded()
			for _, d := range all[before:] {
				i := slices.IndexFunc(c.readers, func(r *reader) bool {
					return r.holds().Generation == int64(slices.Index(all, d))+1
				})
				if i < 0 || d.Caller.RequestID != fmt.Sprint("call-", i) || d.InstanceID != fmt.Sprintf("instance-%02d", i) || seen[d.InstanceID] ||
					d.ClientRequestID != fmt.Sprint("asked-", number) || d.Reason != "ROTATED" || d.Audience != arm || d.PolicyAudience {
					t.Errorf("recorded %+v for stream %d", d, i)
				}
				seen[d.InstanceID] = true
			}
			if d := c.readers[7].holds(); d.Token.Expose() != fmt.Sprint("CANARY-", number) || d.Environment["ARM_SUBSCRIPTION_ID"] != "sub" || d.Access != grant.Read || !d.GrantExpireTime.Equal(w.began.Add(10*time.Hour)) {
				t.Errorf("took %+v", d)
			}
		}
		// What it was given gets old like any other.
		w.after(31 * time.Minute)
		c.took("refresh", "REFRESH v4")
	})
}

// Streams are given what is new in the order in which they came.
func TestFanOut_GoesByTheirComing(t *testing.T) {
	inBubble(t, func(w *world) {
		var want []string
		for i := range 20 {
			name := fmt.Sprint("instance-", (i*7)%20)
			want = append(want, name)
			defer w.gather(1, func(_ int, r *delivery.Request) { r.InstanceID = name }).leave()
		}
		before := len(w.recorded())
		w.rotate(2)
		var have []string
		for _, d := range w.recorded()[before:] {
			have = append(have, d.InstanceID)
		}
		if !slices.Equal(have, want) {
			t.Errorf("recorded for %q, want %q", have, want)
		}
	})
}

// What is the same in many deliveries is made for one of them: of those that say the same but for their lease, their generation and their grant's end.
func TestFanOut_MakesOnceWhatIsAlike(t *testing.T) {
	inBubble(t, func(w *world) {
		w.store.do(func(f *fakeStore) {
			f.fanOutBy = func(instanceID string, g *grant.Grant) {
				switch i := instanceID[len("instance-")]; i {
				case '1':
					g.Phase = grant.Destroying
				case '2':
					g.SubscriptionID = "other"
				}
				g.ExpireTime = g.ExpireTime.Add(time.Duration(instanceID[len(instanceID)-1]-'0') * time.Minute)
			}
		})
		c := w.gather(30, nil)
		defer c.leave()
		w.rotate(2)
		c.took("rotation", "ROTATED v2")
		alike := map[*delivery.Alike]string{}
		for i, r := range c.readers {
			d := r.holds()
			if want := w.began.Add(10*time.Hour + time.Duration(i%10)*time.Minute); !d.GrantExpireTime.Equal(want) || d.Environment["ARM_SUBSCRIPTION_ID"] != d.SubscriptionID {
				t.Errorf("stream %d has %+v", i, d)
			}
			same := fmt.Sprint(d.Phase, " ", d.SubscriptionID)
			if other, ok := alike[d.Alike]; d.Alike == nil || ok && other != same {
				t.Errorf("%q is like %q: %p", same, other, d.Alike)
			}
			alike[d.Alike] = same
		}
		if len(alike) != 3 {
			t.Errorf("%d that are not alike: %v", len(alike), alike)
		}
	})
}

// Of a token that is to be renewed by now each stream says another moment to come back at, so none is like another.
func TestFanOut_OfWhatIsOldIsNotAlike(t *testing.T) {
	inCrowd(t, 20, func(w *world, c *crowd) {
		w.issuer.kept["v2"+arm] = issuer.Token{
			Text: secret.New("CANARY-old"), IssueTime: w.began, RenewTime: w.began, ExpireTime: w.began.Add(time.Hour), RequestID: "asked-old", VersionID: "v2", VersionNumber: 2,
		}
		w.issuer.err = issuer.ErrEntra
		w.rotate(2)
		c.took("rotation", "ROTATED v2")
		moments := map[time.Time]bool{}
		for _, r := range c.readers {
			moments[r.holds().RefreshTime] = true
			if r.holds().Alike != nil {
				t.Errorf("alike: %+v", r.holds())
			}
		}
		if len(moments) < 10 {
			t.Errorf("%d streams come back at %d moments", len(c.readers), len(moments))
		}
	})
}

// Only streams that wait for a token take part, and of those that hold and want the same; all others look for themselves.
func TestFanOut_IsOfWhoHoldsTheSame(t *testing.T) {
	inBubble(t, func(w *world) {
		w.store.do(func(f *fakeStore) { f.materials = []lease.Material{lease.AccessToken, lease.ClientSecret} })
		c := w.gather(40, func(i int, r *delivery.Request) {
			switch {
			case i == 0:
				r.Material = lease.ClientSecret
			case i == 1:
				r.InstanceID = "instance-02" // two streams of one lease
			case i >= 20:
				r.Audience = "https://vault.azure.net"
			}
		})
		defer c.leave()
		w.rotate(2)
		c.took("rotation", "ROTATED v2")
		w.fanned("rotation", 2, 2+2)
		for _, d := range w.recorded() {
			if (d.Audience != arm) != (d.PolicyAudience) && d.Material == lease.AccessToken {
				t.Errorf("recorded %+v", d)
			}
		}
	})
}

// Fewer are not worth it.
func TestFanOut_IsOfMany(t *testing.T) {
	inCrowd(t, 15, func(w *world, c *crowd) {
		w.rotate(2)
		c.took("rotation", "ROTATED v2")
		w.fanned("rotation", 0, 15)
	})
}

// What is said of an integration and is no rotation has each look.
func TestFanOut_OfWhatIsNoRotation(t *testing.T) {
	for name, tt := range map[string]struct {
		change  func(f *fakeStore)
		took    string
		fanOuts int
		want    error
	}{
		"nothing":            {change: func(*fakeStore) {}},
		"compromise":         {change: func(f *fakeStore) { f.versions, f.compromised = []store.Live{live(2)}, 1 }, took: "COMPROMISED v2", fanOuts: 1},
		"no version is left": {change: func(f *fakeStore) { f.versions = nil }, want: issuer.ErrNotReady},
		"detachment":         {change: func(f *fakeStore) { f.standing.Attached = false }, want: grant.ErrDetached},
		"with a rotation":    {change: func(f *fakeStore) { f.versions, f.standing.Attached = []store.Live{live(2)}, false }, fanOuts: 1, want: grant.ErrDetached},
		"the material": {change: func(f *fakeStore) {
			f.versions, f.materials = []store.Live{live(2)}, []lease.Material{lease.ClientSecret}
		}, want: delivery.ErrMaterialNotAllowed},
		"consent lost":        {change: func(f *fakeStore) { f.versions, f.consentLost = []store.Live{live(2)}, time.Now() }, want: issuer.ErrConsentMissing},
		"database goes away":  {change: func(f *fakeStore) { f.fanOutFails = true; f.versions = []store.Live{live(2)} }, took: "ROTATED v2", fanOuts: 1},
		"a fan-out that dies": {change: func(f *fakeStore) { f.fanOutDies = true; f.versions = []store.Live{live(2)} }, took: "ROTATED v2", fanOuts: 1},
	} {
		t.Run(name, func(t *testing.T) {
			inCrowd(t, 20, func(w *world, c *crowd) {
				w.change("uid", "", tt.change)
				if tt.want == nil {
					c.took("change", tt.took)
				}
				for i, r := range c.readers {
					r.mu.Lock()
					if !errors.Is(r.err, tt.want) || len(r.taken) > 0 {
						t.Errorf("stream %d took %v, and ended with %v", i, r.taken, r.err)
					}
					r.mu.Unlock()
				}
				w.store.do(func(f *fakeStore) {
					if f.fanOuts != tt.fanOuts {
						t.Errorf("%d fan-outs", f.fanOuts)
					}
				})
			})
		})
	}
}

// Where nothing is newer, as when a version is gone that nobody holds any more, it is one look whether all are entitled still; who is not, or was to have something else, looks.
func TestFanOut_OfNothingNewer(t *testing.T) {
	inCrowd(t, 20, func(w *world, c *crowd) {
		w.rotate(2)
		c.took("rotation", "ROTATED v2")
		w.fanned("rotation", 1, 1)
		change := func(step string, reads int, change func(f *fakeStore)) {
			t.Helper()
			w.change("uid", "", change)
			w.fanned(step, 0, reads)
			w.store.do(func(f *fakeStore) {
				if f.judged != 1 {
					t.Errorf("%s: judged %d times", step, f.judged)
				}
				f.judged = 0
			})
		}
		change("a version that is gone", 1, func(f *fakeStore) { f.versions = []store.Live{live(2)} })
		c.took("a version that is gone", "")
		change("one that has to see for itself", 2, func(f *fakeStore) { f.missed = "instance-07" })
		change("one whose grant has another end", 2, func(f *fakeStore) {
			f.missed = ""
			f.fanOutBy = func(instanceID string, g *grant.Grant) {
				if instanceID == "instance-03" {
					g.ExpireTime = g.ExpireTime.Add(time.Hour)
				}
			}
		})
		c.took("nothing newer", "")
		w.store.do(func(f *fakeStore) { f.fanOutBy = nil })
		w.rotate(3)
		c.took("rotation", "ROTATED v3")
		// What they were left to wait for still comes.
		w.after(31 * time.Minute)
		c.took("refresh", "REFRESH v3")
	})
}

// A stream that a fan-out does not reach looks for itself; and one that reads slowly is not part of it, and gets the newest when it has read.
func TestFanOut_WhoIsMissedAndWhoIsSlow(t *testing.T) {
	inCrowd(t, 20, func(w *world, c *crowd) {
		w.store.do(func(f *fakeStore) { f.missed = "instance-05" })
		again := c.readers[3].slow()
		w.rotate(2)
		w.fanned("rotation", 1, 2)
		w.rotate(3)
		w.rotate(4)
		w.fanned("two more", 2, 4)
		again()
		synctest.Wait()
		c.took("who is slow", "ROTATED v2, ROTATED v4", 3)
		c.took("the others", "ROTATED v2, ROTATED v3, ROTATED v4", 0, 1, 2, 5, 19)

		// Nor does one miss a rotation that is slow with what it found by itself.
		agains := []func(){c.readers[3].slow(), c.readers[5].slow()}
		w.change("", "g1", func(f *fakeStore) { f.standing.Grant.ExpireTime = w.began.Add(11 * time.Hour) })
		w.rotate(5)
		for _, again := range agains {
			again()
		}
		synctest.Wait()
		c.took("who is slow by itself", "REFRESH v4, ROTATED v5", 3, 5)
	})
}

// A revocation that comes while a fan-out is under way ends its stream at once, and what the fan-out brings finds nobody.
func TestFanOut_DoesNotKeepAnybody(t *testing.T) {
	inCrowd(t, 20, func(w *world, c *crowd) {
		release := w.holdFanOuts()
		w.rotate(2)
		w.change("", "g1", func(f *fakeStore) { f.standing.Grant.RevokeTime = time.Now() })
		for i, r := range c.readers {
			if _, err := r.ended(); err == nil {
				t.Errorf("stream %d is up", i)
			}
		}
		release()
		synctest.Wait()
	})
}

// What happens to the integration while a fan-out is under way is looked for after it: it is no reason for all to look by themselves at once. What a stream finds
// by itself meanwhile, for another reason, is not replaced by what is older.
func TestFanOut_AndWhatComesMeanwhile(t *testing.T) {
	inCrowd(t, 20, func(w *world, c *crowd) {
		release := w.holdFanOuts()
		w.rotate(2)
		w.change("uid", "", func(f *fakeStore) { f.fanOutWaits, f.versions = nil, []store.Live{live(3), retiring(2)} })
		c.took("while it is under way", "")
		w.fanned("while it is under way", 1, 1)
		release()
		synctest.Wait()
		c.took("after it", "ROTATED v2, ROTATED v3")

		release = w.holdFanOuts()
		w.rotate(4)
		w.change("", "g1", func(f *fakeStore) { f.fanOutWaits, f.versions = nil, []store.Live{live(5), retiring(4)} })
		c.took("by itself", "ROTATED v5")
		release()
		synctest.Wait()
		c.took("what is older", "")
	})
}

// A fan-out that takes too long keeps nobody: all look for themselves.
func TestFanOut_ThatHangs(t *testing.T) {
	inCrowd(t, 20, func(w *world, c *crowd) {
		w.holdFanOuts()
		w.rotate(2)
		w.store.change("uid", "", func(f *fakeStore) { f.standing.Attached = false })
		w.hub.Nudge()
		w.after(5 * time.Second)
		for i, r := range c.readers {
			if taken, err := r.ended(); !errors.Is(err, grant.ErrDetached) || len(taken) > 0 {
				t.Errorf("stream %d took %v, %v", i, taken, err)
			}
		}
	})
}

// A stream that is told to look at the very moment at which it is given something does both.
func TestFanOut_AndSomethingElseAtOnce(t *testing.T) {
	inCrowd(t, 40, func(w *world, c *crowd) {
		for number := int64(2); number < 30; number++ {
			release, end := w.holdFanOuts(), w.began.Add(10*time.Hour+time.Duration(number)*time.Minute)
			w.rotate(number) // what the fan-out brings has the grant's former end
			w.store.change("", "g1", func(f *fakeStore) { f.standing.Grant.ExpireTime = end })
			release()
			w.hub.Nudge()
			synctest.Wait()
			for i, r := range c.readers {
				r.mu.Lock()
				if r.last.Version != number || !r.last.GrantExpireTime.Equal(end) {
					t.Errorf("stream %d took %v, and has version %d until %s", i, r.taken, r.last.Version, r.last.GrantExpireTime)
				}
				r.taken = nil
				r.mu.Unlock()
			}
		}
	})
}

// With real stores, on each of several replicas.
func TestFanOut_ReachesAllOnEveryReplica(t *testing.T) {
	withReplicas(t, true, func(r *reach) {
		const each = 24
		ctx, stop := context.WithCancel(r.t.Context())
		var running sync.WaitGroup
		before := len(r.listeners)
		for i := range each {
			uid := fmt.Sprint("many-", i)
			r.exec(`INSERT INTO grants SELECT $1, account, project, project_uid, phase, access, run, integration, integration_uid, subscription_id, incarnation, revision,
				certificate_sha256, CAST($1 AS BLOB), NULL, NULL, create_time, expire_time, revoke_time, use_time, turn FROM grants WHERE uid = 'g1'`, uid)
			for at := range replicas {
				r.listen(ctx, &running, at, uid, fmt.Sprint("instance-", at))
			}
		}
		time.Sleep(time.Second)
		synctest.Wait()
		r.version("uid", 2, "PROPAGATING")
		r.exec(`UPDATE credential_versions SET state = 'RETIRING' WHERE id = 'uid-v1'`)
		r.exec(`UPDATE credential_versions SET state = 'ACTIVE' WHERE id = 'uid-v2'`)
		r.note()
		r.replicas[1].changed()
		time.Sleep(time.Second)
		synctest.Wait()
		for i, l := range r.listeners[before:] {
			if !slices.Equal(l.reasons, []delivery.Reason{delivery.Initial, delivery.Rotated}) || l.err != nil {
				t.Errorf("stream %d heard %v, %v", i, l.reasons, l.err)
			}
		}
		var fanOuts int
		err := r.db.ReadTx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
			return tx.QueryRow(ctx, `SELECT COUNT(*) FROM audit_fanouts`).Scan(&fanOuts)
		})
		if err != nil || fanOuts != replicas {
			t.Errorf("%d records of fan-outs, %v", fanOuts, err)
		}
		stop()
		running.Wait()
	})
}

// A fan-out that is recorded after its streams found a newer version by themselves does not take them back to the older one.
func TestFanOut_OfAVersionThatIsNoLongerTheNewest(t *testing.T) {
	inCrowd(t, 20, func(w *world, c *crowd) {
		release := make(chan struct{})
		w.store.do(func(f *fakeStore) { f.fanOutComes = release })
		w.rotate(2)
		w.change("", "g1", func(f *fakeStore) { f.versions = []store.Live{live(3), retiring(2)} }) // each looks
		c.took("by itself", "ROTATED v3")
		close(release)
		synctest.Wait()
		c.took("from the fan-out", "")
		w.rotate(4)
		c.took("afterwards", "ROTATED v4")
	})
}

// Whoever may only read is not given what was made for those who write: a federated version asks for the two by different subjects.
func TestFanOut_IsOfWhoHasTheSameAccess(t *testing.T) {
	inBubble(t, func(w *world) {
		defer w.gather(20, nil).leave()
		w.store.do(func(f *fakeStore) { f.standing.Grant.Phase = grant.Applying })
		defer w.gather(20, func(_ int, r *delivery.Request) { r.InstanceID = "writer-" + r.InstanceID }).leave()
		w.rotate(2)
		w.fanned("rotation", 2, 2)
	})
}

// The token of a version that was replaced is kept for who still has use of it, and forgotten once the version is gone.
func TestFanOut_ForgetsTheTokenOfAVersionThatIsGone(t *testing.T) {
	inCrowd(t, 20, func(w *world, c *crowd) {
		w.rotate(2)
		if len(w.issuer.dropped) > 0 {
			t.Errorf("dropped %v", w.issuer.dropped)
		}
		w.change("uid", "", func(f *fakeStore) { f.versions = []store.Live{live(3)} })
		c.took("two rotations", "ROTATED v2, ROTATED v3")
		w.fanned("two rotations", 2, 2)
		if !slices.Equal(w.issuer.dropped, []string{"v2"}) {
			t.Errorf("dropped %v", w.issuer.dropped)
		}
	})
}
