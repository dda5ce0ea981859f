package rpc_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	"phasekey.dev/pkg/rpcerr"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/registry/internal/quota"
	"phasekey.dev/services/registry/internal/resource"
	"phasekey.dev/services/registry/internal/store"
)

// model is the registry as anybody would explain it: three maps, and the rules one after another. Random calls are made of both, and
// both must say the same.
type model struct {
	integrations map[string]*modelIntegration
	projects     map[string]*modelProject
	attachments  map[string]*modelAttachment
	// fences are the shards' masterships.
	fences map[int32]fence
}

const modelQuota = 3

// refused is how a call ends that does not succeed; empty when it does.
type refused string

func (m *model) count(account, what string) int {
	n := 0
	var names []string
	switch what {
	case "integrations":
		names = slices.Collect(maps.Keys(m.integrations))
	case "projects":
		names = slices.Collect(maps.Keys(m.projects))
	}
	for _, name := range names {
		if strings.HasPrefix(name, account+"/") {
			n++
		}
	}
	return n
}

func accountOf(name string) string { return strings.Join(strings.Split(name, "/")[:2], "/") }

func idOf(name string) string { return name[strings.LastIndex(name, "/")+1:] }

// player makes random calls, about accounts that nobody else does anything to.
type player struct {
	t        *testing.T
	w        *world
	by       clients
	accounts []string
	// alone tells that there is nobody else.
	alone bool
	// shard is the first of the two by whose masters it reports.
	shard int32
	dice  *rand.Rand
	m     model
	// times are when the resources of these names were made and changed, as they were told.
	times map[string]times
	// old are etags that were current once.
	old []string
	// requests are those that were made by a request ID.
	requests []*request
	// ends counts how calls ended, and by what they were special.
	ends map[refused]int
	// trace is what was called, for a failure.
	trace []string
}

func (p *player) pick(all ...string) string { return all[p.dice.IntN(len(all))] }

func (p *player) yes() bool { return p.dice.IntN(2) == 0 }

func (p *player) account() string { return "accounts/" + p.pick(p.accounts...) }

// everything is the parent of all that the player has made.
func (p *player) everything() string {
	if len(p.accounts) > 1 {
		return "accounts/-"
	}
	return "accounts/" + p.accounts[0]
}

func (p *player) integration() string {
	return p.account() + "/integrations/" + p.pick("a", "b", "c", "d") // one more than the quota
}

func (p *player) project() string { return p.account() + "/projects/" + p.pick("p", "q") }

func (p *player) labels(prefix string) []string {
	var labels []string
	for _, label := range []string{"prod", "net"} {
		if p.yes() {
			labels = append(labels, prefix+label)
		}
	}
	if p.dice.IntN(20) == 0 {
		labels = append(labels, mistake)
	}
	return labels
}

// mistake is a label that is refused everywhere.
const mistake = resource.AutoAttachPrefix + " prod"

type times struct{ created, updated time.Time }

// saw takes in when a resource was made and changed.
func (p *player) saw(m interface {
	GetName() string
	GetCreateTime() *timestamppb.Timestamp
	GetUpdateTime() *timestamppb.Timestamp
}) {
	p.times[m.GetName()] = times{created: m.GetCreateTime().AsTime(), updated: m.GetUpdateTime().AsTime()}
}

// etag is the current one, an old one, or none.
func (p *player) etag(current string) string {
	switch p.dice.IntN(4) {
	case 0:
		if len(p.old) > 0 {
			return p.old[p.dice.IntN(len(p.old))]
		}
		return ""
	case 1:
		return current
	default:
		return ""
	}
}

func mismatch(given, current string) refused {
	if given != "" && given != current {
		return "ETAG_MISMATCH"
	}
	return ""
}

// ended compares how a call ended with how it should have.
func (p *player) ended(what string, want refused, err error) bool {
	p.t.Helper()
	p.trace = append(p.trace, fmt.Sprintf("%s → %q", what, want))
	p.ends[want]++
	if got := refused(rpcerr.Reason(err)); err != nil && (got != want || want == "") || err == nil && want != "" {
		p.t.Fatalf("got %v, want %q\n%s", err, want, strings.Join(p.trace[max(0, len(p.trace)-15):], "\n"))
	}
	return err == nil
}

// calls makes a call, and half the time first asks whether it would succeed, which must say the same and change nothing.
func calls[M proto.Message](ctx context.Context, p *player, what string, want refused, call func(ctx context.Context, validateOnly bool) (M, error)) (M, bool) {
	p.t.Helper()
	var tried M
	asked := p.yes()
	if asked {
		before := p.w.head(p.t)
		var err error
		tried, err = call(ctx, true)
		p.ended(what+", validated", want, err)
		if after := p.w.head(p.t); after != before && p.alone {
			p.t.Fatalf("%s, validated, made revision %d of %d", what, after, before)
		}
	}
	got, err := call(ctx, false)
	ok := p.ended(what, want, err)
	if would, is := any(tried).(tagged); ok && asked && is && would.GetUid() != "" {
		if did := any(got).(tagged); would.GetUid() != did.GetUid() || would.GetEtag() != "" {
			p.t.Fatalf("%s gave %v, and validated %v", what, got, tried)
		}
	}
	return got, ok
}

// step makes one call.
func (p *player) step(ctx context.Context) {
	// Weighted so that there is something to change.
	switch n := p.dice.IntN(24); {
	case n < 4:
		p.createIntegration(ctx)
	case n < 6:
		p.updateIntegration(ctx)
	case n < 7:
		p.deleteIntegration(ctx)
	case n < 8:
		p.forgetIntegration(ctx)
	case n < 11:
		p.writeProject(ctx)
	case n < 12:
		p.deleteProject(ctx)
	case n < 16:
		p.attach(ctx)
	case n < 18:
		p.updateAttachment(ctx)
	case n < 20:
		p.detach(ctx)
	default:
		p.report(ctx)
	}
}

// gone is how the deletion of what is not there ends.
func gone(allowMissing bool) refused {
	if allowMissing {
		return ""
	}
	return "RESOURCE_NOT_FOUND"
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// play makes so many calls.
func (p *player) play(ctx context.Context, steps int) {
	for range steps {
		p.step(ctx)
		if p.dice.IntN(4) == 0 {
			p.look(ctx)
		}
	}
	p.look(ctx)
	p.t.Logf("calls ended %v", p.ends)
}

// Whatever is called in whatever order, the registry does what the model does, also while others do the same to other accounts; and whoever watched from
// the beginning has put together what the lists say.
func TestRegistry_DoesAsItsModel(t *testing.T) {
	for _, tt := range []struct {
		name    string
		steps   int
		callers [][]string // the accounts of each
	}{
		{"one caller", 400, [][]string{{"acme", "beta"}}},
		{"three callers", 200, [][]string{{"acme"}, {"beta"}, {"gamma"}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sqldbtest.Run(t, store.Migrations(), func(t *testing.T, db *sqldb.DB) {
				w := newWorldOn(t, db, quota.Config{Integrations: modelQuota, Projects: modelQuota, Attachments: 100})
				seed := uint64(time.Now().UnixNano())
				t.Logf("seed %d", seed)
				begin, err := w.vault.integrations.ListIntegrations(t.Context(), &registryv1.ListIntegrationsRequest{Parent: "accounts/-"})
				must(t, err)
				var all []*player
				for n, accounts := range tt.callers {
					all = append(all, &player{
						w: w, by: []clients{w.platform, w.operator}[n%2], accounts: accounts, alone: len(tt.callers) == 1, shard: int32(2 * n),
						times: map[string]times{}, ends: map[refused]int{}, dice: rand.New(rand.NewPCG(seed, uint64(n))), m: model{
							integrations: map[string]*modelIntegration{}, projects: map[string]*modelProject{}, attachments: map[string]*modelAttachment{}, fences: map[int32]fence{},
						},
					})
				}
				t.Run("plays", func(t *testing.T) {
					for n, p := range all {
						t.Run(fmt.Sprint(n), func(t *testing.T) {
							t.Parallel()
							p.t = t
							p.play(t.Context(), tt.steps)
						})
					}
				})
				if t.Failed() {
					return
				}
				judge := &player{t: t, m: model{integrations: map[string]*modelIntegration{}, projects: map[string]*modelProject{}, attachments: map[string]*modelAttachment{}}}
				for _, p := range all {
					maps.Copy(judge.m.integrations, p.m.integrations)
					maps.Copy(judge.m.projects, p.m.projects)
					maps.Copy(judge.m.attachments, p.m.attachments)
				}
				judge.compare("what was watched", watched(t, w, begin.GetCursor()))
			})
		})
	}
}

// watched is what a watcher puts together of all changes there are since, which come one by one.
func watched(t *testing.T, w *world, cursor string) *fold {
	t.Helper()
	told := newFold()
	watching, err := w.vault.watch.Watch(t.Context(), &registryv1.WatchRequest{Cursor: cursor})
	must(t, err)
	for head, last := w.head(t), int64(0); last < head; {
		message, err := watching.Recv()
		must(t, err)
		for _, e := range message.GetEvents() {
			if e.GetRevision() != last+1 {
				t.Fatalf("revision %d came after %d", e.GetRevision(), last)
			}
			last = e.GetRevision()
			told.apply(t, e)
		}
	}
	return told
}
