package stalltest

import (
	"testing"
	"testing/synctest"
	"time"
)

// stand has the process have stood still until now, as a clock sees it.
func (c *Clock) stand(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.began, c.seen = c.began.Add(-d), c.seen.Add(-d)
}

func TestClock_CountsNoStandstill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := Start(t)
		time.Sleep(time.Second)
		if ran, stood := c.Ran(), c.Stood(); ran != time.Second || stood > tick {
			t.Errorf("it ran for %s, stood still for %s", ran, stood)
		}
		c.stand(3 * time.Second)
		if ran, stood := c.Ran(), c.Stood(); ran < time.Second-tick || ran > time.Second || stood < 3*time.Second {
			t.Errorf("after a standstill of three seconds: it ran for %s, stood still for %s", ran, stood)
		}
		over := c.After(3 * time.Second)
		time.Sleep(time.Second)
		c.stand(time.Minute)
		time.Sleep(900 * time.Millisecond)
		select {
		case <-over:
			t.Errorf("over after %s", c.Ran())
		default:
		}
		time.Sleep(200 * time.Millisecond)
		<-over
	})
}

func TestTry_ExcusesWhatFailsInAStandstillAlone(t *testing.T) {
	for _, tt := range []struct {
		name  string
		stood []time.Duration // for how long each attempt's process stands still
		fail  func(t testing.TB)
		tries int
	}{
		{"nothing fails", []time.Duration{0}, func(testing.TB) {}, 1},
		{"nothing fails in a standstill", []time.Duration{time.Second}, func(testing.TB) {}, 1},
		{"error", []time.Duration{time.Second, 0}, func(t testing.TB) { t.Error("late") }, 2},
		{"fatal", []time.Duration{time.Second, time.Second, 0}, func(t testing.TB) { t.Fatalf("late") }, 3},
		{"in a cleanup", []time.Duration{time.Second, 0}, func(t testing.TB) { t.Cleanup(func() { t.Errorf("late") }) }, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tries := 0
			Try(t, time.Second/2, func(t testing.TB) {
				stands := tt.stood[tries]
				tries++
				t.(*attempt).clock.stand(stands)
				if stands > 0 {
					tt.fail(t)
				}
			})
			if tries != tt.tries {
				t.Errorf("%d attempts, want %d", tries, tt.tries)
			}
		})
	}
}

// failures is a test that may fail.
type failures struct {
	testing.TB
	told int
}

func (f *failures) Errorf(string, ...any) { f.told++ }
func (f *failures) Error(...any)          { f.told++ }
func (f *failures) Fail()                 { f.told++ }
func (f *failures) Fatal(...any)          { f.told++ }
func (f *failures) Fatalf(string, ...any) { f.told++ }
func (f *failures) FailNow()              { f.told++ }

func TestTry_FailsForWhatItsTestBears(t *testing.T) {
	told := &failures{TB: t}
	a := &attempt{TB: told, bears: time.Second, clock: Start(t)}
	a.clock.stand(time.Second / 2)
	a.Error("wrong")
	a.Errorf("wrong")
	a.Fail()
	a.Fatal("wrong")
	a.Fatalf("wrong")
	a.FailNow()
	if told.told != 6 || a.isVoid() {
		t.Errorf("of 6 failures %d count", told.told)
	}
}
