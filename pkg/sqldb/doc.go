// Package sqldb opens a service's database, SQLite or PostgreSQL, and runs transactions in it by one query text for both.
//
// What it guarantees: the schema is at least as new as the code; a transaction is all or nothing; a read transaction sees one moment; an error says
// whether trying again can help (ErrUnavailable), and whether the work may have been done nevertheless (ErrUnknownOutcome). Text compares by bytes on
// both engines: a PostgreSQL database of another collation is refused, for the order of pages would depend on the engine. A connection that leaves the machine is
// verified TLS with a password, or is not made.
//
// What it does not: it does not translate SQL. The text both engines take has $1 parameters, BIGINT microseconds (Micros, Time), BOOLEAN, TEXT and byte
// strings, ON CONFLICT and RETURNING; it has no now(), no FOR UPDATE, no ANY, no ::casts, no writing WITH. A list of any length comes by
// Values, so that the text of a statement does not depend on it.
//
// A list that goes on from page to page is read by an Order and Page, whatever its filter.
//
// What each statement costs is the way to PostgreSQL and back. Those that do not wait for each other go together in a Batch, and the first statements of a transaction go with
// what begins it, and the last ones with what commits it (Tx.Last).
//
// The one tricky idea is the commit. Until COMMIT is sent nothing has happened, and a transaction that lost a race (a serialization failure, a deadlock) runs
// again by itself. A COMMIT whose reply is lost may have happened, and is never repeated here: the caller gets ErrUnknownOutcome and must ask the database. So that this
// stays rare, the caller's context stops a transaction up to the moment before COMMIT and no later; from then on only a time limit of our own does.
//
// SQLite runs on one connection, so transactions take turns, also those that only read; the file belongs to one process at a time.
package sqldb
