package signer

import (
	"context"
	"errors"
	"fmt"

	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/directory"
	"phasekey.dev/services/vault/internal/keyring"
)

// ErrNoIssuer means that the vault is no issuer, so that nothing can be asked with a federated version.
var ErrNoIssuer = errors.New("vault is not an issuer")

// Presenter has token requests show who an integration's application is.
type Presenter struct {
	// Keyring opens the sealed secrets of versions, see credential.SealedAs.
	Keyring opener
	// Signer signs for federated versions; nil where the vault is no issuer.
	Signer *Signer
}

// Present has a request show what the version stands for: its secret, or an assertion of its own, made for this request, about the subject for reading
// or for writing. An error that means as much as a refusal is a *directory.Error: directory.SecretUnreadable where the text of a secret is lost, though it is stored;
// about an assertion, directory.TrustRefused where the version's key does not sign, and directory.Transient otherwise.
func (p Presenter) Present(ctx context.Context, v credential.Version, write bool, r *directory.TokenRequest) error {
	if !v.Federated() {
		text, err := p.Keyring.Open(ctx, credential.SealedAs(v.ID), v.Sealed)
		if keyring.Lost(err) {
			return &directory.Error{Op: "open secret", Class: directory.SecretUnreadable, Err: err}
		}
		if err != nil {
			return fmt.Errorf("open %s: %w", v, err)
		}
		r.Secret = text
		return nil
	}
	const op = "sign assertion"
	if p.Signer == nil {
		return &directory.Error{Op: op, Class: directory.Transient, Err: ErrNoIssuer}
	}
	made, err := p.Signer.Assert(ctx, v.SigningKey, Claims{Subject: directory.Subject(v.IntegrationUID, write)})
	switch {
	case errors.Is(err, ErrKeyGone):
		return &directory.Error{Op: op, Class: directory.TrustRefused, Err: err}
	case err != nil:
		return &directory.Error{Op: op, Class: directory.Transient, Err: err}
	}
	r.Assertion = made.Text
	return nil
}
