// Package credential is the life of an integration's credential as a state machine, whole and in one place: what is
// known goes in as Facts, Decide names the one thing to do next, and what came of it goes back through the methods that
// return a Change. Nothing here talks to anybody or reads a clock.
//
// What it guarantees, whatever Entra answers and in whatever order masters die: a version becomes ACTIVE only when it
// was proven as Timing says; there are never two ACTIVE ones; a version that somebody holds is not revoked; every state
// follows another by the one table of transitions. What it does not: it cannot know whether a request that was sent will
// still be carried out. Such a version is ABANDONED, and its password is found by reading.
//
// The tricky idea is the intent. A version is stored, INTENDED and with SendTime set, before Entra is asked for its
// password. So an INTENDED version with a SendTime, met by anybody but the one who has just sent the request, means
// exactly one thing: the answer is lost, and with it the secret's text. There is no guessing what a crash left behind.
package credential
