package signer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"phasekey.dev/pkg/obs"
	"phasekey.dev/services/vault/internal/election"
	"phasekey.dev/services/vault/internal/signingkey"
	"phasekey.dev/services/vault/internal/store"
)

// database is what the keeper needs of the store.
type database interface {
	SigningFacts(ctx context.Context) (signingkey.Facts, error)
	AddSigningKey(ctx context.Context, m election.Mastership, now time.Time, k signingkey.Key) error
	MoveSigningKey(ctx context.Context, m election.Mastership, move signingkey.Move) error
}

// Keeper makes, replaces and removes signing keys. One shard's master runs it.
type Keeper struct {
	// Store has the keys.
	Store   database
	Keyring sealer
	// Timing must be valid.
	Timing signingkey.Timing
	// Poll is how often it is looked whether somebody wants another key; PollInterval when zero.
	Poll time.Duration
	Log  *slog.Logger
}

// Serve does what is to be done about the keys until ctx ends: nil then, and an error that is election.ErrFenced when another replica took the shard. Failures
// of anything else only delay it.
func (k *Keeper) Serve(ctx context.Context, m election.Mastership) error {
	for ctx.Err() == nil {
		wait := k.Poll
		if wait == 0 {
			wait = PollInterval
		}
		acted, err := k.step(ctx, m)
		switch {
		case errors.Is(err, election.ErrFenced):
			return fmt.Errorf("keep signing keys: %w", err)
		case errors.Is(err, store.ErrChanged), err == nil && acted:
			continue
		case err != nil && ctx.Err() == nil:
			k.Log.WarnContext(ctx, "signing keys could not be kept", slog.Any(obs.KeyError, err))
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
	return nil
}

// step does one thing, if there is one to be done.
func (k *Keeper) step(ctx context.Context, m election.Mastership) (acted bool, err error) {
	facts, err := k.Store.SigningFacts(ctx)
	if err != nil {
		return false, err
	}
	now := time.Now()
	switch a := signingkey.Decide(now, facts, k.Timing).(type) {
	case signingkey.Make:
		made, err := newKey(now, a.Number, k.Keyring)
		if err != nil {
			return false, err
		}
		if err := k.Store.AddSigningKey(ctx, m, now, made); err != nil {
			return false, err
		}
		k.told(ctx, made)
	case signingkey.Move:
		if err := k.Store.MoveSigningKey(ctx, m, a); err != nil {
			return false, err
		}
		k.told(ctx, a.Key)
	case signingkey.Wait:
		return false, nil
	}
	return true, nil
}

func (k *Keeper) told(ctx context.Context, key signingkey.Key) {
	k.Log.InfoContext(ctx, "signing key changed state", slog.String(keyKeyID, key.ID), slog.Int64(keyNumber, key.Number), slog.String(keyState, string(key.State)))
}
