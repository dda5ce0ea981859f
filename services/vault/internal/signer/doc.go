// Package signer makes the vault an OpenID issuer: it keeps the signing keys, signs assertions by them, and serves what token services
// verify those by.
//
// It guarantees that nothing is signed with a key that is not SIGNING as far as this replica can have heard, and nothing at all once it has
// heard nothing for signingkey.MaxAge; that the private halves of keys leave the database only encrypted and this process not at all; and that what is
// served is the last that was known, however long the database is away, for an issuer that cannot be read has its assertions
// refused. It does not decide who may have an assertion, nor which key signs for whom: a credential version says so.
//
// The tricky idea: keys are known by looking, every Poll, and what was seen last is all that counts for serving. Signing is stricter: it
// looks again first where the last look is older than that.
package signer
