package load

import (
	"context"
	"crypto/rand"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	typev1 "phasekey.dev/gen/phasekey/type/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/test/internal/rigtest"
)

//nolint:gochecknoglobals // flags are
var (
	streams  = flag.Int("load.streams", 40, "streams that have a connection of their own; twice as many share some")
	rounds   = flag.Int("load.rounds", 1, "how often everything is measured")
	duration = flag.Duration("load.duration", 200*time.Millisecond, "how long each number of callers calls")
	firsts   = flag.Int("load.firsts", 5, "how many runners come one after another")
	promises = flag.Bool("load.promises", false, "fail when a promise is not kept")
	callers  = flag.String("load.callers", "1,16,64", "how many call FetchCredential at the same time; profiles are taken of 64")
	only     = flag.String("load.only", "fetch,first,own,shared,stop", "what to measure; stop is of the streams that are")
	progress = flag.Bool("load.progress", false, "say what is being measured, and show the table")
	baoPath  = flag.String("load.bao", "", "compare with this binary of OpenBao")
	profiles = flag.String("load.profiles", "", "keep the profiles in this folder")
	numbers  = flag.String("load.json", "", "write the numbers to this file")
)

func rowID() string { return rand.Text() }

// rowContent is of the size of an audit record.
var rowContent = strings.Repeat("0123456789abcdef", 40) //nolint:gochecknoglobals // a constant

// stage is one run of everything.
type stage struct {
	world  *world
	report *report
	// credential is one that a vault gave; the floor gives the same.
	credential *vaultv1.Credential
}

func TestLoad(t *testing.T) {
	w := newWorld(t)
	s := &stage{world: w, report: &report{Machine: fmt.Sprintf("%d processors, %s", runtime.NumCPU(), runtime.Version()), Streams: *streams, Rounds: *rounds}}
	asked := strings.Split(*only, ",")
	s.say("starting PostgreSQL, Redis, the simulator, a registry and two vaults; %d runners get a grant", 2**streams)
	postgres := w.newSuite(t, sqldb.DriverPostgres, 2, 2**streams)
	s.credential = w.fetchOne(t, postgres)
	if slices.Contains(asked, "fetch") || slices.Contains(asked, "first") {
		s.calls(t, asked, postgres)
	}
	for _, pattern := range []struct {
		name             string
		n, perConnection int
		memory, reach    bound
	}{
		{"own", *streams, 1, bound{most: 1.25}, bound{least: 0.8}},
		{"shared", 2 * *streams, streamsPerConnection, bound{most: 1.5}, bound{least: 0.8}},
	} {
		if !slices.Contains(asked, pattern.name) {
			continue
		}
		for round := range *rounds {
			s.say("round %d: %d streams, connections %s", round+1, pattern.n, pattern.name)
			s.streams(t, postgres, pattern.name, pattern.n, pattern.perConnection, pattern.memory, pattern.reach)
			if slices.Contains(asked, "stop") {
				s.stops(t, postgres, pattern.name, pattern.n, pattern.perConnection)
			}
		}
	}
	s.finish(t)
}

func (s *stage) say(format string, args ...any) {
	if *progress {
		fmt.Printf(time.Now().Format("15:04:05  ")+format+"\n", args...)
	}
}

func (s *stage) finish(t *testing.T) {
	t.Helper()
	if *progress {
		s.report.write(os.Stdout)
	}
	if *numbers != "" {
		text, err := s.report.json()
		rigtest.Must(t, err)
		rigtest.Must(t, os.MkdirAll(filepath.Dir(*numbers), 0o755))
		rigtest.Must(t, os.WriteFile(*numbers, append(text, '\n'), 0o644))
	}
	if *promises {
		for _, broken := range s.report.broken() {
			t.Error(broken)
		}
	}
}

// fetchOne is a credential as a runner gets it.
func (w *world) fetchOne(t *testing.T, s *suite) *vaultv1.Credential {
	t.Helper()
	conn, err := w.connect(s.vaults[0])
	rigtest.Must(t, err)
	defer func() { rigtest.Must(t, conn.Close()) }()
	ctx, cancel := context.WithTimeout(s.holders[0].shown(t.Context()), callTimeout)
	defer cancel()
	got, err := vaultv1.NewCredentialServiceClient(conn).FetchCredential(ctx, &vaultv1.FetchCredentialRequest{
		InstanceId: s.holders[0].instance, Material: typev1.Material_MATERIAL_ACCESS_TOKEN,
	})
	rigtest.Must(t, err)
	return got.GetCredential()
}

// contender is a suite with what its vault is compared with: bare servers that commit a row a call, each by itself and together.
type contender struct {
	suite           *suite
	alone, together *server
}

// The floors that commit, as rows call them.
const (
	committingAlone    = "a floor that commits each call"
	committingTogether = "a floor that commits calls together"
)

// rival is what calls of another server came to; the bare floor's have no name.
type rival struct {
	name string
	fetched
}

// calls measures single calls, on both databases.
func (s *stage) calls(t *testing.T, asked []string, postgres *suite) {
	t.Helper()
	w := s.world
	bare := w.newFloor(t, "floor", s.credential, nil, false)
	bare.Start(t)
	contenders := []contender{{suite: postgres}, {suite: w.newSuite(t, sqldb.DriverSQLite, 1, *streams)}}
	for i := range contenders {
		c := &contenders[i]
		start := func(name string, together bool) *server {
			db := w.newDatabase(t, c.suite.name, name)
			floor := w.newFloor(t, name+" on "+c.suite.name, s.credential, &db, together)
			floor.Start(t)
			return floor
		}
		c.alone, c.together = start(committingAlone, false), start(committingTogether, true)
	}
	var peers []*bao
	if *baoPath != "" {
		for _, storage := range baoStorages {
			peers = append(peers, w.newBao(t, *baoPath, storage.name))
		}
	}
	for round := range *rounds {
		for text := range strings.SplitSeq(*callers, ",") {
			if !slices.Contains(asked, "fetch") {
				continue
			}
			n, err := strconv.Atoi(text)
			rigtest.Must(t, err)
			s.say("round %d: FetchCredential, %d callers", round+1, n)
			floor := rival{"", w.fetch(t, bare, n, postgres.holders, *duration, nothing)}
			var leases []rival
			for _, peer := range peers {
				leases = append(leases, rival{"leases of " + peer.Name, w.leases(t, peer, n, *duration)})
			}
			for _, c := range contenders {
				s.contend(t, c, n, floor, leases)
			}
		}
		if !slices.Contains(asked, "first") {
			continue
		}
		s.say("round %d: %d runners, one after another", round+1, *firsts)
		took := map[*server][]time.Duration{}
		for i := range *firsts {
			for _, to := range []*server{bare, contenders[0].suite.vaults[0], contenders[0].alone} {
				d, err := w.first(t.Context(), to, postgres.holders[i%len(postgres.holders)])
				rigtest.Must(t, err)
				took[to] = append(took[to], d)
			}
		}
		for _, all := range took {
			slices.Sort(all)
		}
		vault, floor, inserting := took[contenders[0].suite.vaults[0]], took[bare], took[contenders[0].alone]
		s.report.add("first credential, fresh connection, p50", "ms", "", bound{}, quantile(vault, 0.5), quantile(floor, 0.5))
		commit := max(quantile(inserting, 0.5)-quantile(floor, 0.5), 0)
		s.report.add("first credential, fresh connection, p99", "ms", "1.5 × the floor, and a commit", bound{most: 1},
			quantile(vault, 0.99), 1.5*quantile(floor, 0.99)+commit)
	}
	for _, c := range contenders {
		c.alone.Kill(t)
		c.together.Kill(t)
	}
	bare.Kill(t)
}

// contend measures a suite's vault and the floors that commit. That these are compared with the bare floor, too, and with leases, says which of the promises a server could keep that does nothing but
// commit.
func (s *stage) contend(t *testing.T, c contender, n int, floor rival, leases []rival) {
	t.Helper()
	on := fmt.Sprintf(", %d callers, %s", n, c.suite.name)
	measure := func(to *server) fetched {
		return s.world.fetch(t, to, n, c.suite.holders, *duration, c.suite.databaseTime)
	}
	vault, alone, together := measure(c.suite.vaults[0]), rival{committingAlone, measure(c.alone)}, rival{committingTogether, measure(c.together)}
	var rate, rest bound
	name := "FetchCredential" + on
	if n == mostCallers && c.suite.admin != nil {
		rate, rest = bound{least: 0.5, orElse: name}, bound{most: 1.3, orElse: name}
	}
	s.compare(name, vault, rate, rest, floor, alone, together)
	for i, l := range leases {
		var promised bound
		if c.suite.admin != nil && n > 1 {
			promised = baoStorages[i].promised
		}
		s.report.add(name, "calls/s", l.name, promised, vault.rate(), l.rate())
		s.report.add(name+": server", "µs CPU", l.name, bound{}, vault.cost(vault.server), l.cost(l.server))
	}
	for _, r := range []rival{alone, together} {
		s.compare(r.name+on, r.fetched, bound{}, bound{}, floor)
		for _, l := range leases {
			s.report.add(r.name+on, "calls/s", l.name, bound{}, r.rate(), l.rate())
		}
	}
}

// compare says what calls cost beside others. The first of these is the bare floor, of which the bounds are.
func (s *stage) compare(name string, of fetched, rate, rest bound, beside ...rival) {
	rows := func(what, unit string, promised bound, value func(fetched) float64) {
		for _, r := range beside {
			if v := value(r.fetched); v > 0 { // else it is not known, or there is none
				s.report.add(what, unit, r.name, promised, value(of), v)
			}
			promised = bound{}
		}
	}
	rows(name, "calls/s", rate, fetched.rate)
	rows(name+": server", "µs CPU", bound{}, func(f fetched) float64 { return f.cost(f.server) })
	if of.shares != nil {
		for _, part := range []share{ofDatabase, ofTransport, ofOwn, ofRuntime} {
			rows(name+": – "+string(part), "µs CPU", bound{}, func(f fetched) float64 { return f.cost(f.server) * f.shares[part] })
		}
		rows(name+": – without the database's", "µs CPU", rest, func(f fetched) float64 { return f.cost(f.server) * restOf(f.shares) })
		rows(name+": allocated", "KiB", bound{}, func(f fetched) float64 { return float64(f.allocated) / float64(max(f.calls, 1)) / 1024 })
	}
	if of.database > 0 {
		rows(name+": database", "µs CPU", bound{}, func(f fetched) float64 { return f.cost(f.database) })
	}
	rows(name+": runners", "µs CPU", bound{}, func(f fetched) float64 { return f.cost(f.runners) })
	// What nothing else on the machine takes away from, and no waiting.
	rows(name+": as many as the processors could do", "calls/s", bound{}, func(f fetched) float64 {
		return float64(runtime.NumCPU()) * 1e6 / f.cost(f.server+f.database+f.runners)
	})
}

const (
	// gatherTime bounds how long streams take to open, or to return after a replica's death, reachTime how long they take to be reached; both for each thousand
	// of them.
	gatherTime = 30 * time.Second
	reachTime  = 30 * time.Second
)

// scaled is a limit for so many streams.
func scaled(limit time.Duration, n int) time.Duration { return limit * time.Duration(1+n/1000) }

// streams measures live streams: of the floor, then of a vault, each a fresh process.
func (s *stage) streams(t *testing.T, suite *suite, name string, n, perConnection int, memory, reach bound) {
	t.Helper()
	type result struct {
		memory, rate, p50, p99, last, push float64
		// server, database and runners are what the push cost of the processors, in microseconds a stream.
		server, database, runners float64
	}
	measure := func(to *server, others []*server, database func(*testing.T) time.Duration, push func() time.Time) (r result, c *crowd) {
		base := memoryOf(t, &to.Process)
		c = s.world.gather(t, n, perConnection, suite.holders, scaled(gatherTime, n), append([]*server{to}, others...)...)
		r = result{
			memory: float64(memoryOf(t, &to.Process)-base) / float64(n) / 1024, rate: float64(n) / c.opened.Seconds(), p50: quantile(c.firsts, 0.5), p99: quantile(c.firsts, 0.99),
		}
		s.say("%s has %d streams: %.0f a second, %.1f KiB each", to.Name, n, r.rate, r.memory)
		c.forget()
		times := func() [3]time.Duration {
			return [3]time.Duration{processorTime(t, to.PID()), database(t), processorTime(t, os.Getpid())}
		}
		before := times()
		began := push()
		last, err := c.reached(n, c.arrivals, scaled(reachTime, n))
		rigtest.Must(t, err)
		after := times()
		for i, of := range []*float64{&r.server, &r.database, &r.runners} {
			*of = float64((after[i] - before[i]).Microseconds()) / float64(n)
		}
		r.last = last.Sub(began).Seconds()
		r.push = float64(n) / r.last
		s.say("%s has reached all of them in %.3f s", to.Name, r.last)
		return r, c
	}
	bare := s.world.newFloor(t, "floor of "+name, s.credential, nil, false)
	bare.Start(t)
	floor, c := measure(bare, nil, nothing, func() time.Time {
		now := time.Now()
		bare.push(t)
		return now
	})
	c.leave()
	bare.Kill(t)

	first, second := suite.vaults[0], suite.vaults[1]
	first.Kill(t)
	first.Start(t)
	var end func() (map[share]float64, error)
	vault, c := measure(first, []*server{second}, suite.databaseTime, func() time.Time {
		end = profiled(t.Context(), first, first.Name+"-rotation-"+name)
		return suite.rotate(t)
	})
	of, err := end()
	rigtest.Must(t, err)
	label := fmt.Sprintf("%d streams, connections %s", n, name)
	s.report.add(label+": memory", "KiB", "", memory, vault.memory, floor.memory)
	s.report.add(label+": opened", "1/s", "", bound{}, vault.rate, floor.rate)
	s.report.add(label+": first, p50", "ms", "", bound{}, vault.p50, floor.p50)
	s.report.add(label+": first, p99", "ms", "", bound{}, vault.p99, floor.p99)
	s.report.add(label+": all reached after", "s", "", bound{}, vault.last, floor.last)
	s.report.add(label+": rate of that", "1/s", "", reach, vault.push, floor.push)
	s.report.add(label+": server, a stream", "µs CPU", "", bound{}, vault.server, floor.server)
	for _, part := range []share{ofDatabase, ofTransport, ofOwn, ofRuntime} {
		s.report.add(label+": – "+string(part), "µs CPU", "", bound{}, vault.server*of[part])
	}
	s.report.add(label+": database, a stream", "µs CPU", "", bound{}, vault.database)
	s.report.add(label+": runners, a stream", "µs CPU", "", bound{}, vault.runners, floor.runners)
	c.forget()
	died := time.Now()
	first.Kill(t)
	last, err := c.reached(n-int(c.elsewhere.Load()), c.returns, scaled(gatherTime, n))
	rigtest.Must(t, err)
	s.report.add(label+": served again after", "s", "", bound{}, last.Sub(died).Seconds())
	s.say("all are served again %.1f s after %s died", last.Sub(died).Seconds(), first.Name)
	c.leave()
	first.Start(t)
}
