package rotation

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/google/uuid"

	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/directory"
)

// token makes one token request with a version, of a federated one with the subject for reading or for writing.
func (t *turn) token(ctx context.Context, op, tenantID string, v credential.Version, write bool) (token directory.Token, refused, err error) {
	request := directory.TokenRequest{
		TenantID: tenantID, ClientID: t.facts.Application.ClientID, Audience: t.cloud.ResourceManager(), RequestID: uuid.NewString(),
	}
	if err := t.w.present.Present(ctx, v, write, &request); err != nil {
		if _, ok := errors.AsType[*directory.Error](err); ok {
			return directory.Token{}, err, nil
		}
		return directory.Token{}, nil, err
	}
	refused, err = t.call(ctx, op, func(ctx context.Context) (err error) {
		token, err = t.cloud.Token(ctx, request)
		return err
	})
	t.log.DebugContext(ctx, "token asked for", slog.String(keyOp, op), slog.String(keyVersion, v.ID), slog.String(keyClient, request.RequestID))
	return token, refused, err
}

func (t *turn) askHome(ctx context.Context, v credential.Version) error {
	_, refused, err := t.token(ctx, credential.AskHome{}.Op(), t.cloud.HomeTenantID(), v, false)
	if err != nil {
		return err
	}
	finding := homeFindingOf(refused)
	switch finding {
	case credential.Unsure:
		return t.postpone(ctx, v, refused)
	case credential.Unreadable:
		return t.learn(ctx, t.facts.Unreadable(time.Now(), t.w.config.Timing, v))
	default:
	}
	return t.learn(ctx, t.facts.AskedHome(time.Now(), t.w.config.Timing, v, finding))
}

func (t *turn) prove(ctx context.Context, v credential.Version) error {
	// Both subjects in turn: a federated version is two federated credentials, which replicate each by itself.
	token, refused, err := t.token(ctx, credential.Prove{}.Op(), t.facts.Integration.TenantID, v, v.Proofs%2 == 1)
	if err != nil {
		return err
	}
	finding, code := findingOf(refused)
	t.w.metrics.proofs.WithLabelValues(string(finding)).Inc()
	switch {
	case finding == credential.Unreadable:
		return t.learn(ctx, t.facts.Unreadable(time.Now(), t.w.config.Timing, v))
	case finding == credential.Unsure && code != "" && !away(refused):
		return t.learn(ctx, t.facts.Unproven(time.Now(), t.w.config.Timing, v, refusal(refused).RetryAfter))
	case finding == credential.Unsure:
		return t.postpone(ctx, v, refused)
	}
	return t.learn(ctx, t.facts.Proved(time.Now(), t.w.config.Timing, v, finding, code, token.PrincipalObjectID))
}

// ask has the prober ask; what it learns is taken in by the next step, like any other replica's.
func (t *turn) ask(ctx context.Context, v credential.Version) error {
	var claimed bool
	refused, err := t.call(ctx, credential.Ask{}.Op(), func(ctx context.Context) (err error) {
		claimed, _, err = t.w.prober.ask(ctx, t.facts, v)
		return err
	})
	switch {
	case err != nil:
		return err
	case refused != nil && !claimed:
		return refused // not Entra's
	case refused != nil || !claimed:
		return t.postpone(ctx, v, refused)
	}
	return nil
}

// postpone notes that nothing was learnt about a version.
func (t *turn) postpone(ctx context.Context, v credential.Version, refused error) error {
	return t.learn(ctx, t.facts.Postponed(time.Now(), t.w.config.Timing, v, refusal(refused).RetryAfter))
}
