package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/services/registry/internal/resource"
)

// requestMemory is how long the result of a request ID is remembered.
const requestMemory = 24 * time.Hour

// request is a creation that may come again. Scope keeps the request IDs of different methods and parents apart, so that
// nobody learns of another account's.
type request struct {
	scope, id, digest string
}

// newRequest digests what the caller asked for; contents must encode the same way for equal requests, in all releases.
func newRequest(scope, id string, contents any) (request, error) {
	text, err := encode(contents)
	if err != nil {
		return request{}, err
	}
	sum := sha256.Sum256([]byte(text))
	return request{scope: scope, id: id, digest: hex.EncodeToString(sum[:])}, nil
}

// recall reads the result of the same request, made before. It reports false when there was none.
func (w *writing) recall(ctx context.Context, r request) (result string, found bool, err error) {
	if r.id == "" {
		return "", false, nil
	}
	var digest string
	err = w.QueryRow(ctx, `SELECT digest, result FROM requests WHERE scope = $1 AND request_id = $2 AND expire_time > $3`,
		r.scope, r.id, sqldb.Micros(w.now)).Scan(&digest, &result)
	switch {
	case errors.Is(err, sqldb.ErrNoRows):
		return "", false, nil
	case err != nil:
		return "", false, fmt.Errorf("recall request: %w", err)
	case digest != r.digest:
		return "", false, &resource.Error{
			Reason:   resource.ErrRequestIDReused,
			Message:  "this request_id was used with other contents; use a fresh one for a new request",
			Metadata: map[string]string{"requestId": r.id},
		}
	}
	return result, true, nil
}

// remember keeps the result for a day.
func (w *writing) remember(ctx context.Context, r request, result string) error {
	if r.id == "" {
		return nil
	}
	_, err := w.Exec(ctx, `DELETE FROM requests WHERE scope = $1 AND request_id = $2 AND expire_time <= $3`, r.scope, r.id, sqldb.Micros(w.now))
	if err != nil {
		return fmt.Errorf("forget request: %w", err)
	}
	_, err = w.Exec(ctx, `INSERT INTO requests (scope, request_id, digest, result, expire_time) VALUES ($1, $2, $3, $4, $5)`,
		r.scope, r.id, r.digest, result, sqldb.Micros(w.now.Add(requestMemory)))
	if err != nil {
		return fmt.Errorf("remember request: %w", err)
	}
	return nil
}

// ForgetRequests removes what need not be remembered any more.
func (s *Store) ForgetRequests(ctx context.Context, now time.Time) error {
	err := s.db.Tx(ctx, func(ctx context.Context, tx sqldb.Tx) error {
		_, err := tx.Exec(ctx, `DELETE FROM requests WHERE expire_time <= $1`, sqldb.Micros(now))
		return err
	})
	if err != nil {
		return fmt.Errorf("forget requests: %w", meaning(err))
	}
	return nil
}
