// Package rotation carries out what package credential decides: it makes applications and passwords, proves, promotes and
// removes them, one request at a time, and tells the registry how it stands.
//
// What it guarantees: an intent is committed before a password is asked for; no request to Entra or Graph runs inside a
// transaction, and none is started with less mastership left than it may take; each integration has one writer; every
// proof is one token request of its own. Every step is one transaction under the fence, so that a worker may be killed
// between any two instructions and another one goes on. What it does not: it decides nothing about credentials.
//
// The tricky idea: the context of a mastership may end while Graph answers. What was learnt is then still written, for a
// moment and past that context, because the text of a password is told only once. That is safe, for it is the fence, not
// the context, that keeps a former master from writing.
package rotation
