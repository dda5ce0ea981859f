package rpc

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"

	brokerv1 "phasekey.dev/gen/phasekey/broker/v1"
	"phasekey.dev/pkg/displayname"
	"phasekey.dev/pkg/obs"
	"phasekey.dev/pkg/rpcerr"
	"phasekey.dev/services/broker/internal/consent"
)

const (
	// defaultLife is how long a session is open unless its creator says otherwise, maxLife the longest.
	defaultLife = 24 * time.Hour
	maxLife     = 7 * 24 * time.Hour
	// maxSkew is how much a caller's clock may be ahead of ours when it asks for maxLife.
	maxSkew = time.Minute
	// requestLife is how long a request ID makes repeats safe.
	requestLife = 24 * time.Hour
)

// CreateConsentSession implements ConsentService.
func (s *Service) CreateConsentSession(ctx context.Context, req *brokerv1.CreateConsentSessionRequest) (*brokerv1.ConsentSession, error) {
	now := time.Now()
	account, expire, err := s.check(ctx, now, req)
	if err != nil {
		return nil, err
	}
	request := consent.Request{
		Account:     account,
		ID:          req.GetRequestId(),
		Fingerprint: fingerprint(req),
		ExpireTime:  now.Add(requestLife),
	}
	session, err := s.create(ctx, now, request, req.GetConsentSession(), expire)
	if err != nil {
		return nil, problem(err, req.GetConsentSession().GetIntegration())
	}
	return s.reply(session), nil
}

func (s *Service) create(ctx context.Context, now time.Time, request consent.Request, asked *brokerv1.ConsentSession, expire time.Time) (consent.Session, error) {
	if request.ID != "" {
		// Before the registry is asked: what was created stays what it was, whatever became of the integration.
		session, err := s.cfg.Store.Replay(ctx, now, request)
		if !isNotFound(err) {
			return session, err
		}
	}
	integration := asked.GetIntegration()
	found, err := s.cfg.Registry.Integration(ctx, integration)
	if err != nil {
		return consent.Session{}, err
	}
	if found.Deleting {
		return consent.Session{}, consent.ErrIntegrationDeleting
	}
	if err := displayname.Check(found.DisplayName); err != nil {
		return consent.Session{}, fmt.Errorf("create session of %s: %w", integration, &nameError{err})
	}
	if _, ok := s.cfg.Links.Clouds[found.Cloud]; !ok {
		return consent.Session{}, fmt.Errorf("create session of %s: %w: %q", integration, consent.ErrUnknownCloud, found.Cloud)
	}
	session := consent.New(now, request.Account, found, expire)
	session.ReturnURI = asked.GetReturnUri()
	linkHash := consent.Hash(s.cfg.Links.Key.LinkOf(session))
	created, err := s.cfg.Store.Create(ctx, now, session, linkHash, request, s.cfg.MaxOpen)
	if err != nil {
		return consent.Session{}, err
	}
	s.cfg.Log.InfoContext(ctx, "consent session created", slog.String(obs.KeyResource, created.Name.String()), slog.String(keyIntegration, integration))
	return created, nil
}

// check returns the account and the deadline, or INVALID_ARGUMENT naming every field that is wrong.
func (s *Service) check(ctx context.Context, now time.Time, req *brokerv1.CreateConsentSessionRequest) (account string, expire time.Time, err error) {
	var bad []field
	account, ok := parseAccount(req.GetParent())
	if !ok {
		bad = append(bad, field{"parent", "must name an account"})
	}
	if of, ok := accountOf(req.GetConsentSession().GetIntegration()); !ok || of != account {
		bad = append(bad, field{"consent_session.integration", "must be an integration of the parent"})
	}
	expire = now.Add(defaultLife)
	if asked := req.GetConsentSession().GetExpireTime(); asked != nil {
		expire = asked.AsTime()
		switch {
		case !asked.IsValid():
			bad = append(bad, field{"consent_session.expire_time", "must be a timestamp"})
		case !expire.After(now):
			bad = append(bad, field{"consent_session.expire_time", "must be in the future"})
		case expire.After(now.Add(maxLife + maxSkew)):
			bad = append(bad, field{"consent_session.expire_time", "must be at most seven days ahead"})
		}
	}
	if uri := req.GetConsentSession().GetReturnUri(); uri != "" {
		if err := s.cfg.Origins.Check(uri); err != nil {
			// Whoever runs the broker may have to configure the origin. The whole address may hold a secret of the platform's.
			s.cfg.Log.WarnContext(ctx, "a return link is refused", slog.String(keyIntegration, req.GetConsentSession().GetIntegration()), slog.Any(obs.KeyError, err))
			bad = append(bad, field{"consent_session.return_uri", consent.ErrReturn.Error()})
		}
	}
	return account, expire, invalid(bad)
}

// field is one that is wrong.
type field struct{ path, description string }

// fingerprint is what a request asks for, leaving out what is ignored.
func fingerprint(req *brokerv1.CreateConsentSessionRequest) []byte {
	expire := "default"
	if t := req.GetConsentSession().GetExpireTime(); t != nil {
		expire = t.AsTime().Format(time.RFC3339Nano)
	}
	// No field can contain a line break: the first two have patterns, and the address was checked.
	asked := req.GetParent() + "\n" + req.GetConsentSession().GetIntegration() + "\n" + expire
	if uri := req.GetConsentSession().GetReturnUri(); uri != "" {
		asked += "\n" + uri
	}
	sum := sha256.Sum256([]byte(asked))
	return sum[:]
}

func invalid(bad []field) error {
	if len(bad) == 0 {
		return nil
	}
	all := &errdetails.BadRequest{}
	for _, b := range bad {
		all.FieldViolations = append(all.FieldViolations, rpcerr.Field(b.path, b.description).GetFieldViolations()...)
	}
	return rpcerr.InvalidFields(all)
}
