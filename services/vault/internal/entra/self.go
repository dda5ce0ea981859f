package entra

import (
	"context"
	"errors"
	"net/url"
	"strings"
	"time"

	"github.com/microsoftgraph/msgraph-sdk-go/models"

	"phasekey.dev/services/vault/internal/directory"
)

// errOwnApplication means that a request was about the platform's own application. Who could have the vault do that could have it lock itself out, or hand
// itself out.
var errOwnApplication = errors.New("refused: this is the platform's own application")

func ownTarget(op string) error {
	return &directory.Error{Op: op, Class: directory.Malformed, Err: errOwnApplication}
}

// notOwn refuses a write to the platform's own application. Its object ID is asked for until it is known; where Graph says that we may not see it, we may not write to
// it either.
func (d *Directory) notOwn(ctx context.Context, op, objectID string) error {
	id := d.ownID.Load()
	if id == nil {
		id = new(string)
		found, err := d.self(ctx) // by several at once at worst, none of whom waits for another's request
		switch {
		case err == nil:
			*id = value(found.GetId())
		case !invisible(err):
			return reclassed(op, err)
		}
		d.ownID.Store(id)
	}
	if *id != "" && strings.EqualFold(objectID, *id) {
		return ownTarget(op)
	}
	return nil
}

// invisible reports whether Graph says that there is no such application, or that we may not see it.
func invisible(err error) bool {
	var refused *directory.Error
	return errors.As(err, &refused) && (refused.Code == "Request_ResourceNotFound" || refused.Code == "Authorization_RequestDenied")
}

// reclassed makes a failure to look ourselves up one of the request that was not sent for it.
func reclassed(op string, err error) error {
	var failed *directory.Error
	if errors.As(err, &failed) {
		again := *failed
		again.Op = op
		return &again
	}
	return &directory.Error{Op: op, Class: directory.Transient, Err: err}
}

// notOwnClient refuses what bears the platform's own client ID.
func (d *Directory) notOwnClient(op, clientID string) error {
	if strings.EqualFold(clientID, d.config.ClientID) {
		return ownTarget(op)
	}
	return nil
}

// self reads the platform's own application.
func (d *Directory) self(ctx context.Context) (models.Applicationable, error) {
	const op = "read own application"
	found, err := d.item().WithUrl(d.graph+"/applications(appId='"+url.PathEscape(d.config.ClientID)+"')?$select=id,appId,passwordCredentials").Get(ctx, nil)
	if err != nil {
		return nil, graphError(op, false, err)
	}
	if found == nil || found.GetId() == nil {
		return nil, &directory.Error{Op: op, Class: directory.Transient, Err: errors.New("the answer names no application")}
	}
	return found, nil
}

// CredentialKind names one of the platform's own credentials that end.
type CredentialKind string

// The kinds. Workload and managed identities have no end that anybody here has to see to.
const (
	Certificate  CredentialKind = "certificate"
	ClientSecret CredentialKind = "secret"
)

// Expiry is when one of the platform's own credentials ends.
type Expiry struct {
	Kind CredentialKind
	// End is zero when it is not known.
	End time.Time
	// Err says why it is not known, or why the file as it is now is not used.
	Err error
}

// Expiries finds out when the configured credentials end: a certificate by its file; a secret by what Graph says about our own application, if we may read it, as
// an owner may.
func (d *Directory) Expiries(ctx context.Context) []Expiry {
	var out []Expiry
	if path := d.config.Credential.CertificateFile; path != "" {
		e := Expiry{Kind: Certificate}
		data, err := readCredential(path)
		if err == nil {
			certificates, _, parseErr := parseCertificate(data)
			if err = parseErr; err == nil {
				e.End = certificates[0].NotAfter
			}
		}
		e.Err = err
		out = append(out, e)
	}
	if path := d.config.Credential.SecretFile; path != "" {
		e := Expiry{Kind: ClientSecret}
		e.End, e.Err = d.secretEnd(ctx, path)
		out = append(out, e)
	}
	return out
}

// hintSize is how many characters of a secret Graph shows.
const hintSize = 3

// secretEnd finds the secret by its first characters. Of several that begin alike the first to end counts, so that a warning comes too soon at worst.
func (d *Directory) secretEnd(ctx context.Context, path string) (time.Time, error) {
	data, err := readCredential(path)
	if err != nil {
		return time.Time{}, err
	}
	text := strings.TrimSpace(string(data))
	if len(text) <= hintSize {
		return time.Time{}, errors.New("the secret is too short to be one")
	}
	found, err := d.self(ctx)
	if err != nil {
		return time.Time{}, err
	}
	var end time.Time
	for _, p := range found.GetPasswordCredentials() {
		at := p.GetEndDateTime()
		if at == nil || value(p.GetHint()) != text[:hintSize] {
			continue
		}
		if end.IsZero() || at.Before(end) {
			end = *at
		}
	}
	if end.IsZero() {
		return time.Time{}, errors.New("our own application has no such secret")
	}
	return end, nil
}
