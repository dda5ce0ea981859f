package follow_test

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"phasekey.dev/services/broker/internal/consent"
	"phasekey.dev/services/broker/internal/follow"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeStore has the version of each link's session, and counts the questions.
type fakeStore struct {
	mu       sync.Mutex
	versions map[string]int64
	err      error
	asked    [][]string
}

func (s *fakeStore) set(link string, version int64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.versions[link], s.err = version, err
}

func (s *fakeStore) questions() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.asked)
}

func (s *fakeStore) ByLinks(_ context.Context, hashes [][]byte) (map[string]consent.Session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out, asked := map[string]consent.Session{}, []string{}
	for _, hash := range hashes {
		asked = append(asked, string(hash))
		if version, ok := s.versions[string(hash)]; ok {
			out[string(hash)] = consent.Session{Version: version}
		}
	}
	s.asked = append(s.asked, asked)
	return out, s.err
}

func inBubble(t *testing.T, test func(t *testing.T, s *fakeStore, h *follow.Hub)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &fakeStore{versions: map[string]int64{}}
		h := follow.New(follow.Config{Store: s, Interval: time.Second, Log: slog.New(slog.DiscardHandler)})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- h.Run(ctx) }()
		test(t, s, h)
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// news is what a follower has been told by now; 0 is nothing.
func news(f *follow.Follower) int64 {
	synctest.Wait()
	select {
	case s := <-f.News():
		return s.Version
	default:
		return 0
	}
}

func TestHub_TellsEachFollowerTheNewest(t *testing.T) {
	inBubble(t, func(t *testing.T, s *fakeStore, h *follow.Hub) {
		s.set("a", 1, nil)
		s.set("b", 7, nil)
		first, other, elsewhere := h.Follow([]byte("a"), 1), h.Follow([]byte("a"), 0), h.Follow([]byte("b"), 7)
		defer other.Close()
		defer elsewhere.Close()
		time.Sleep(1500 * time.Millisecond)
		if a, b, c := news(first), news(other), news(elsewhere); a != 0 || b != 1 || c != 0 {
			t.Errorf("at first they are told %d, %d, %d", a, b, c)
		}
		s.set("a", 2, nil)
		time.Sleep(time.Second)
		s.set("a", 3, nil)
		time.Sleep(time.Second)
		if a, b, c := news(first), news(other), news(elsewhere); a != 3 || b != 3 || c != 0 {
			t.Errorf("then they are told %d, %d, %d", a, b, c)
		}
		first.Close()
		s.set("a", 4, nil)
		time.Sleep(time.Second)
		if a, b := news(first), news(other); a != 0 || b != 4 {
			t.Errorf("closed, they are told %d, %d", a, b)
		}
	})
}

func TestHub_AsksOnceForAllAndOnlyWhatIsFollowed(t *testing.T) {
	inBubble(t, func(t *testing.T, s *fakeStore, h *follow.Hub) {
		time.Sleep(10*time.Second + time.Millisecond)
		if n := s.questions(); n != 0 {
			t.Errorf("nobody follows, and it asks %d times", n)
		}
		var all []*follow.Follower
		for range 1000 {
			all = append(all, h.Follow([]byte("a"), 0))
		}
		time.Sleep(10 * time.Second)
		if n := s.questions(); n != 10 || len(s.asked[0]) != 1 {
			t.Errorf("%d questions, the first of %v", n, s.asked[0])
		}
		for _, f := range all {
			f.Close()
		}
		time.Sleep(10 * time.Second)
		if n := s.questions(); n != 10 {
			t.Errorf("%d questions afterwards", n-10)
		}
	})
}

func TestHub_GoesOnWhenTheDatabaseIsBack(t *testing.T) {
	inBubble(t, func(t *testing.T, s *fakeStore, h *follow.Hub) {
		f := h.Follow([]byte("a"), 1)
		defer f.Close()
		s.set("a", 2, errors.New("away"))
		time.Sleep(5 * time.Second)
		if v := news(f); v != 0 {
			t.Errorf("while it is away: %d", v)
		}
		s.set("a", 2, nil)
		time.Sleep(2 * time.Second)
		if v := news(f); v != 2 {
			t.Errorf("afterwards: %d", v)
		}
	})
}
