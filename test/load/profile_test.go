package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"
)

// share is a part of a server's work.
type share string

const (
	// ofDatabase is talking with the database, which with SQLite is also its work.
	ofDatabase share = "database"
	// ofTransport is gRPC, HTTP/2 and TLS, which the floor has as well.
	ofTransport share = "gRPC and TLS"
	// ofOwn is everything else, of which a floor does next to nothing.
	ofOwn share = "its own work"
	// ofRuntime is what Go does for all of them: scheduling, collecting garbage.
	ofRuntime share = "Go's runtime"
)

// shareOf are the packages whose work a stack is, by the beginnings of their functions' names; of several the innermost counts. What belongs to none, as the standard
// library, works for whoever called it.
var shareOf = []struct { //nolint:gochecknoglobals // a constant
	prefix string
	share  share
}{
	{"phasekey.dev/pkg/sqldb.", ofDatabase},
	{"github.com/jackc/", ofDatabase},
	{"database/sql.", ofDatabase},
	{"database/sql/", ofDatabase},
	{"modernc.org/", ofDatabase},
	{"google.golang.org/grpc/", ofTransport},
	{"google.golang.org/grpc.", ofTransport},
	{"golang.org/x/net/", ofTransport},
	{"crypto/tls.", ofTransport},
	{"google.golang.org/protobuf/", ofTransport},
	{"phasekey.dev/gen/", ofTransport},
	{"phasekey.dev/", ofOwn},
}

// profileTime is how long a profile is taken at least: it is asked for in whole seconds.
const profileTime = time.Second

// profileOf takes a profile of a server's processor time for so long, and returns the shares, and how many bytes it allocated meanwhile.
func profileOf(ctx context.Context, s *server, d time.Duration) (of map[share]float64, allocated int64, err error) {
	before, err := allocatedBy(ctx, s)
	if err != nil {
		return nil, 0, err
	}
	text, err := s.profile(ctx, fmt.Sprintf("profile?seconds=%d", int(d.Seconds())), d)
	if err != nil {
		return nil, 0, err
	}
	after, err := allocatedBy(ctx, s)
	if err != nil {
		return nil, 0, err
	}
	if *profiles != "" {
		allocs, err := s.profile(ctx, "allocs", 0)
		if err != nil {
			return nil, 0, err
		}
		err = errors.Join(os.MkdirAll(*profiles, 0o755), os.WriteFile(filepath.Join(*profiles, s.Name+".pprof"), text, 0o644),
			os.WriteFile(filepath.Join(*profiles, s.Name+".allocs.pprof"), allocs, 0o644))
		if err != nil {
			return nil, 0, err
		}
	}
	taken, err := profile.ParseData(text)
	if err != nil {
		return nil, 0, err
	}
	return shares(taken), after - before, nil
}

// profiled has a profile taken of a server's processor time, of so many whole seconds as it takes until end is called, which waits for the last and returns the shares.
func profiled(ctx context.Context, s *server, name string) (end func() (map[share]float64, error)) {
	over, failed := make(chan struct{}), make(chan error, 1)
	var taken []*profile.Profile
	go func() {
		for {
			one, err := s.profileNow(ctx)
			taken = append(taken, one)
			select {
			case <-over:
				failed <- err
				return
			default:
			}
			if err != nil {
				failed <- err
				return
			}
		}
	}()
	return func() (map[share]float64, error) {
		close(over)
		if err := <-failed; err != nil {
			return nil, err
		}
		whole, err := profile.Merge(taken)
		if err != nil {
			return nil, err
		}
		return shares(whole), keep(whole, name)
	}
}

// keep writes a profile to a file where they are wanted.
func keep(p *profile.Profile, name string) (err error) {
	if *profiles == "" {
		return nil
	}
	if err := os.MkdirAll(*profiles, 0o755); err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(*profiles, name+".pprof"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return p.Write(f)
}

// profileNow takes a profile of the server's processor time.
func (s *server) profileNow(ctx context.Context) (*profile.Profile, error) {
	text, err := s.profile(ctx, fmt.Sprintf("profile?seconds=%d", int(profileTime.Seconds())), profileTime)
	if err != nil {
		return nil, err
	}
	return profile.ParseData(text)
}

// allocatedBy is how many bytes the server has allocated in its life.
func allocatedBy(ctx context.Context, s *server) (int64, error) {
	text, err := s.profile(ctx, "allocs?debug=1", 0)
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(text), "\n# TotalAlloc = ")
	number, _, _ := strings.Cut(rest, "\n")
	return strconv.ParseInt(number, 10, 64)
}

// profile asks for a page of profiles that takes so long.
func (s *server) profile(ctx context.Context, page string, d time.Duration) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, d+callTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://%s/debug/pprof/%s", s.profiles, page), nil)
	if err != nil {
		return nil, err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer func() { _ = answer.Body.Close() }()
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("profile of %s: %s", s.Name, answer.Status)
	}
	return io.ReadAll(answer.Body)
}

// shares divides a profile. They add up to 1; nil when the process did nothing.
func shares(taken *profile.Profile) map[share]float64 {
	sums := map[share]float64{}
	total := 0.0
	for _, s := range taken.Sample {
		v := float64(s.Value[len(s.Value)-1])
		sums[ownerOf(s)] += v
		total += v
	}
	if total == 0 {
		return nil
	}
	for of := range sums {
		sums[of] /= total
	}
	return sums
}

// ownerOf is whose work a sample is.
func ownerOf(s *profile.Sample) share {
	for _, location := range s.Location { // the innermost first
		for _, line := range location.Line {
			name := line.Function.Name
			if i := slices.IndexFunc(shareOf, func(of struct {
				prefix string
				share  share
			},
			) bool {
				return strings.HasPrefix(name, of.prefix)
			}); i >= 0 {
				return shareOf[i].share
			}
		}
	}
	return ofRuntime
}

// restOf is what is left without the database's, and its part of the runtime's: all have that in proportion.
func restOf(of map[share]float64) float64 {
	own := of[ofTransport] + of[ofOwn]
	if own == 0 {
		return 0
	}
	return own / (own + of[ofDatabase])
}

func TestShares(t *testing.T) {
	t.Parallel()
	stack := func(value int64, names ...string) *profile.Sample {
		s := &profile.Sample{Value: []int64{1, value}}
		for _, name := range names {
			s.Location = append(s.Location, &profile.Location{Line: []profile.Line{{Function: &profile.Function{Name: name}}}})
		}
		return s
	}
	got := shares(&profile.Profile{Sample: []*profile.Sample{
		stack(30, "syscall.Write", "github.com/jackc/pgx/v5/pgconn.(*PgConn).flush", "phasekey.dev/pkg/sqldb.(*DB).Tx", "phasekey.dev/services/vault/internal/store.(*Store).deliver"),
		stack(10, "crypto/sha256.block", "phasekey.dev/pkg/chain.Next", "phasekey.dev/pkg/sqldb.(*DB).Tx"),
		stack(20, "syscall.Write", "crypto/tls.(*Conn).Write", "google.golang.org/grpc/internal/transport.(*loopyWriter).run"),
		stack(40, "runtime.gcDrain", "runtime.gcBgMarkWorker"),
	}})
	for of, want := range map[share]float64{ofDatabase: 0.3, ofOwn: 0.1, ofTransport: 0.2, ofRuntime: 0.4} {
		if got[of] != want {
			t.Errorf("%s: %v, not %v", of, got[of], want)
		}
	}
	if r := restOf(got); r < 0.499 || r > 0.501 {
		t.Errorf("without the database's: %v, not half", r)
	}
}
