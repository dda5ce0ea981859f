// Package year is the proof of rotation: the real rotator, store, election, issuer and hub, with Microsoft's SDKs, live through months and years of faults
// against the simulator of Entra, in the fake time of a testing/synctest bubble, while a judge watches the invariants.
//
// A fault is drawn from a number that only (seed, replica, step, occurrence) decide: replicas are killed before and after every write and request, paused past
// their lock's life, and lose replies. The weather changes in the large: Redis, the database, Entra or the registry is away, Graph throttles, a customer withdraws
// consent. Some integrations have no secret; the signing keys change, and kinds do. Meanwhile runners hold leases: some read slowly, some vanish, some come back all the time; and operators have integrations rotated, pause that, and
// say that secrets are in other hands.
//
// The judge rests on what the three parties wrote down by themselves: the simulator's journal (what worked where, and when), what commits have made of the vault's rows, and the
// receipts of the runners. It never asks the code that it judges, nor anything else: what happens is told to it, one event after another, and the same events are a file, the
// journal, by which a judge comes to the same again.
//
// It is a test, and nothing else: see the files beside this one.
package year
