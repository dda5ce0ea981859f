package store

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/vault/internal/credential"
)

// versionKind is the event that a version entered a state: VersionActive, and the like. Its Reason is the version's.
func versionKind(s credential.State) AuditKind {
	return AuditKind("Version" + string(s[:1]) + strings.ToLower(string(s[1:])))
}

// auditMoves records the transitions of a step.
func (s *Store) auditMoves(ctx context.Context, tx masterTx, step Step) error {
	var events []AuditEvent
	note := func(v credential.Version) {
		events = append(events, AuditEvent{
			Time: step.Now, Kind: versionKind(v.State), IntegrationUID: step.IntegrationUID, VersionID: v.ID, Reason: v.Reason, ExpireTime: v.EndTime,
		})
	}
	if step.Change.Intent != nil {
		note(*step.Change.Intent)
	}
	for _, m := range step.Change.Moves {
		if m.From != m.Version.State {
			note(m.Version)
		}
	}
	if len(events) == 0 {
		return nil
	}
	var name string
	err := tx.QueryRow(ctx, `SELECT name FROM integrations WHERE uid = $1`, step.IntegrationUID).Scan(&name)
	if err != nil && !errors.Is(err, sqldb.ErrNoRows) {
		return fmt.Errorf("read name of integration: %w", err)
	}
	for _, e := range events {
		if name != "" {
			e.Account = accountOf(name)
		}
		if err := s.audit(ctx, tx.Tx, e); err != nil {
			return err
		}
	}
	return nil
}
