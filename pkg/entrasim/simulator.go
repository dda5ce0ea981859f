package entrasim

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"phasekey.dev/pkg/entrasim/internal/chance"
	"phasekey.dev/pkg/entrasim/internal/eventlog"
)

// control is the actor of everything done by the simulator's own interface.
const control = "control"

// Simulator is one simulated cloud. Its methods are safe for concurrent use.
type Simulator struct {
	config Config
	dice   *chance.Source
	key    *signer

	issuers *issuers
	meters  meters

	mu      sync.Mutex
	state   *state
	journal journal
	faults  faults
	log     *eventlog.Log // nil when in memory
}

// New returns a simulator, from the state folder if there is one. It starts
// nothing; Close lets go of the state.
func New(config Config) (*Simulator, error) {
	config, err := config.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("simulator configuration: %w", err)
	}
	s := &Simulator{config: config, state: newState(), issuers: newIssuers(config.Issuers)}
	s.journal = journal{limit: config.JournalRequests, life: config.JournalLife, evidence: make(map[string]*evidence)}
	if config.StateDir != "" {
		s.log, err = eventlog.Open(filepath.Join(config.StateDir, "entrasim.log"), s.replay)
		if err != nil {
			return nil, err
		}
	}
	s.dice = chance.NewSource(config.Seed, s.journal.seq)
	if err := s.openKey(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Close lets go of the state folder and of connections to issuers. Requests that
// write fail afterwards.
func (s *Simulator) Close() error {
	s.issuers.client.CloseIdleConnections()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.log == nil {
		return nil
	}
	return s.log.Close()
}

// Endpoints returns where the planes are.
func (s *Simulator) Endpoints() Endpoints {
	return s.config.endpoints()
}

func (s *Simulator) replay(record json.RawMessage) error {
	var c change
	if err := json.Unmarshal(record, &c); err != nil {
		return fmt.Errorf("decode change: %w", err)
	}
	if c.Seq <= s.journal.seq {
		return fmt.Errorf("change %d comes after %d: %w", c.Seq, s.journal.seq, eventlog.ErrCorrupt)
	}
	if err := s.state.apply(&c); err != nil {
		return fmt.Errorf("change %d: %w", c.Seq, err)
	}
	s.journal.addChange(&c)
	return nil
}

// commit makes a change: on the disk first, then in memory. The caller holds mu
// and has checked that the change applies; on an error nothing has happened
// that anybody may rely on.
func (s *Simulator) commit(c *change) error {
	c.Seq = s.journal.seq + 1
	if s.log != nil {
		if err := s.log.Append(c); err != nil {
			s.config.Log.Error("state cannot be written", "error", err)
			return err
		}
	}
	if err := s.state.apply(c); err != nil {
		return err
	}
	s.journal.addChange(c)
	return nil
}

// openKey takes the signing key from the state, or makes it part of it.
func (s *Simulator) openKey() error {
	if s.state.key == nil {
		encoded, err := newKey()
		if err != nil {
			return err
		}
		if err := s.commit(&change{Time: time.Now().UTC(), Kind: "key.created", Actor: control, Key: encoded}); err != nil {
			return err
		}
	}
	key, err := newSigner(s.state.key)
	s.key = key
	return err
}
