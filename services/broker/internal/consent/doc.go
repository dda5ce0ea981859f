// Package consent holds the rules of consent sessions: what a session is, what becomes of it given what was found out
// about its integration, when to look again, and the link by which an administrator consents.
//
// It guarantees that a session is completed by a proof alone, the first time never after its deadline, and never leaves an end; and
// that an integration's tenant is asked at most once in an interval, however many sessions wait for it. It does not
// find anything out, keep anything, or know the time: callers bring all three.
//
// The first tricky idea is the link. It must be shown again for as long as the session is open, yet whoever reads the
// database must not be able to make it. So it is not stored: it is an HMAC of the session's name and a stored nonce
// under a key that is kept outside the database, and only its hash is stored, for finding the session by it. A new nonce
// is a new link, and makes the old one worthless.
//
// The second is what a browser's return is worth. Whoever can make up a link can send a browser to the callback, so a return
// changes nothing unless the state in it is one that this browser was given when its button was pressed, which a cookie shows;
// and even then it proves nothing: it is shown, and the tenant is asked sooner.
package consent
