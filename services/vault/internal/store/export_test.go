package store

// RelationColumns are those of a grant g that StandingColumns may look at.
const (
	RelationColumns = relationColumns
	StandingColumns = standingColumns
)

// Waiting is how many deliveries have been ordered and not begun.
func (s *Store) Waiting() int {
	s.deliveries.mu.Lock()
	defer s.deliveries.mu.Unlock()
	return len(s.deliveries.waiting)
}

// Busy tells whether deliveries are under way, and none waits.
func (s *Store) Busy() bool {
	s.deliveries.mu.Lock()
	defer s.deliveries.mu.Unlock()
	return s.deliveries.running && len(s.deliveries.waiting) == 0
}

// WaitingToRead is how many entitlements have been asked for, and are not being read.
func (s *Store) WaitingToRead() int {
	q := &s.entitlements.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.waiting)
}
