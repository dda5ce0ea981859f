package story

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/uuid"
)

// memory is what a story keeps in the stack's folder, so that one that was interrupted or killed goes on. It is written
// before what depends on it is done.
type memory struct {
	// ID is random. The request IDs of all calls that make something are derived from it, so that repeats find what was made.
	ID string `json:"id"`
	// Lives counts how often the story was begun or gone on with.
	Lives int `json:"lives"`
	// Integrations is what is known of each, by its ID. It must never change.
	Integrations map[string]known `json:"integrations"`
	// Outcomes are those of the steps that are done; StepTime is when the next one was begun.
	Outcomes []outcome `json:"outcomes"`
	StepTime time.Time `json:"step_time"`
	// Declined says that an administrator has declined once, as the story has it.
	Declined bool `json:"declined"`
	// Cursor is where the registry's changes are watched from while the integrations are deleted.
	Cursor string `json:"cursor"`
	Done   bool   `json:"done"`

	path string
	mu   sync.Mutex
}

// known is what identifies an integration and what was made of it.
type known struct {
	UID         string `json:"uid"`
	ClientID    string `json:"client_id"`
	PrincipalID string `json:"principal_id"`
}

// remember finds the folder's memory, or makes a new one when there is none or its story is through.
func remember(dir string) (*memory, error) {
	path := filepath.Join(dir, "story.json")
	m := &memory{}
	text, err := os.ReadFile(path) //nolint:gosec // a file of the stack's own folder
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return nil, err
	default:
		if err := json.Unmarshal(text, m); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	if m.ID == "" || m.Done {
		m = &memory{ID: uuid.NewString(), Integrations: map[string]known{}}
	}
	m.path = path
	return m, m.change(func() { m.Lives++ })
}

// change makes a change, and has the file that says so appear whole or not at all.
func (m *memory) change(make func()) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	make()
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	next := m.path + ".new"
	if err := os.WriteFile(next, append(text, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(next, m.path)
}

// requestID is the same for the same thing in all lives of a story.
func (m *memory) requestID(what string) string {
	return uuid.NewSHA1(uuid.MustParse(m.ID), []byte(what)).String()
}

// known is what an integration was known as; the zero value before it was.
func (m *memory) known(id string) known {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.Integrations[id]
}
