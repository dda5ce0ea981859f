package runner

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"time"

	"google.golang.org/grpc/codes"

	typev1 "phasekey.dev/gen/phasekey/type/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/rpcerr"
)

const (
	// fetchTimeout bounds one call for another audience's token.
	fetchTimeout = 15 * time.Second
	// maxAudiences bounds what one runner remembers: whoever asks invents the names.
	maxAudiences = 32
	// refusalKept is how long a refusal is repeated without a call. With maxAudiences it bounds how often a child that invents names can have
	// the vault asked.
	refusalKept = 10 * time.Second
)

// The errors for audiences.
var (
	// ErrAudience is returned for an audience that no vault would take.
	ErrAudience = errors.New("not an audience: want https://host, api://name or an application's ID")
	// ErrTooManyAudiences is returned when a child asks for more different ones than it can have a use for.
	ErrTooManyAudiences = errors.New("too many different audiences")
	// ErrNoTokens is returned by a runner whose material is not access tokens: there are none under its lease.
	ErrNoTokens = errors.New("this runner holds no access tokens")
)

// audiencePattern is the vault's own constraint, so that nonsense stays on this machine.
var audiencePattern = regexp.MustCompile(`^((https|api)://[A-Za-z0-9][A-Za-z0-9.-]*|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})$`)

// other is the token for one more audience.
type other struct {
	turn chan struct{} // holds one element while somebody fetches; the others wait for what it finds
	// Guarded by turn.
	cred Credential
	// The version that was streamed when cred was fetched. What was fetched before a rotation is fetched again.
	streamed int64
	// refusal is what the vault said last, and when, if that was a refusal that does not pass.
	refusal   error
	refusedAt time.Time
}

// useless reports whether nothing is held, and nothing but a refusal was got, some time ago. The caller has o's turn.
func (o *other) useless(now time.Time) bool {
	return o.refusal != nil && now.Sub(o.refusedAt) >= refusalKept && !o.cred.valid(now)
}

// CredentialFor returns a credential for an audience: the streamed one, or one fetched under the same lease and kept until
// its refresh time. However many ask at once, one call is made. Its errors are those of Credential, ErrAudience,
// ErrTooManyAudiences, ErrNoTokens, and the vault's refusals (AUDIENCE_NOT_ALLOWED); what may pass is tried again until ctx ends.
func (r *Runner) CredentialFor(ctx context.Context, audience string) (Credential, error) {
	if r.cfg.Material != typev1.Material_MATERIAL_ACCESS_TOKEN {
		return Credential{}, ErrNoTokens
	}
	key := canonicalAudience(audience)
	if !audiencePattern.MatchString(key) || len(key) > 200 {
		return Credential{}, ErrAudience
	}
	streamed, err := r.Credential(ctx)
	if err != nil || canonicalAudience(streamed.Audience) == key {
		return streamed, err
	}
	o, err := r.other(key)
	if err != nil {
		return Credential{}, err
	}
	select {
	case o.turn <- struct{}{}:
		defer func() { <-o.turn }()
	case <-ctx.Done():
		return Credential{}, fmt.Errorf("wait for a credential for %s: %w", key, ctx.Err())
	}
	if o.refusal != nil && time.Since(o.refusedAt) < refusalKept && !o.cred.valid(time.Now()) {
		return Credential{}, o.refusal
	}
	for fails := 0; ; fails++ {
		if o.streamed == streamed.Version && time.Now().Before(o.cred.RefreshTime) {
			return o.cred, nil
		}
		err := r.fetch(ctx, key, o, streamed.Version)
		final := asFinal(err)
		switch {
		case err == nil:
			return o.cred, nil
		case final != nil:
			r.state.finish(final)
			return Credential{}, final
		case o.cred.valid(time.Now()):
			// Late, but it works. Whoever asks next tries again.
			return o.cred, nil
		case !passing(err):
			o.refusal, o.refusedAt = fmt.Errorf("fetch a credential for %s: %w", key, err), time.Now()
			return Credential{}, o.refusal
		}
		retry := time.NewTimer(max(backoffDelay(fails), min(rpcerr.RetryDelay(err), backoffMax)))
		select {
		case <-retry.C:
		case <-r.Done():
			retry.Stop()
			return Credential{}, r.Err()
		case <-ctx.Done():
			retry.Stop()
			return Credential{}, fmt.Errorf("fetch a credential for %s: %w", key, errors.Join(ctx.Err(), err))
		}
	}
}

// fetch asks the vault once. The caller has o's turn.
func (r *Runner) fetch(ctx context.Context, key string, o *other, streamed int64) error {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	resp, err := r.client.FetchCredential(ctx, &vaultv1.FetchCredentialRequest{
		InstanceId: r.instance,
		Material:   r.cfg.Material,
		Audience:   key,
	}, r.bearer)
	if err != nil {
		return err
	}
	c, err := newCredential(time.Now(), r.cfg.Material, resp.GetCredential())
	if err != nil {
		return err
	}
	if canonicalAudience(c.Audience) != key {
		return fmt.Errorf("%w: it is for %s", errUnusable, c.Audience)
	}
	o.cred, o.streamed, o.refusal = c, streamed, nil
	return nil
}

// other returns the place of an audience's token.
func (r *Runner) other(key string) (*other, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	o, ok := r.others[key]
	if !ok {
		if len(r.others) >= maxAudiences && !r.makeRoom(time.Now()) {
			return nil, ErrTooManyAudiences
		}
		o = &other{turn: make(chan struct{}, 1)}
		r.others[key] = o
	}
	return o, nil
}

// makeRoom forgets one audience that was only refused, and reports whether there was one. The caller holds mu.
func (r *Runner) makeRoom(now time.Time) bool {
	for key, o := range r.others {
		select {
		case o.turn <- struct{}{}:
		default:
			continue // somebody is asking
		}
		useless := o.useless(now)
		<-o.turn
		if useless {
			delete(r.others, key)
			return true
		}
	}
	return false
}

// passing reports whether an error may go away by itself: everything but a refusal that the vault gives a reason for.
func passing(err error) bool {
	if rpcerr.Reason(err) == "" {
		return true
	}
	st, _ := rpcerr.FromError(err)
	switch st.Code() {
	case codes.Unavailable, codes.DeadlineExceeded, codes.ResourceExhausted, codes.Aborted, codes.Internal:
		return true
	default:
		return false
	}
}
