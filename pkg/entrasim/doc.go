// Package entrasim simulates what a program meets when it talks to Microsoft
// Entra ID's login endpoints, to Microsoft Graph and to Azure Resource Manager:
// the shapes and error texts, and above all the eventual consistency, in which
// a write succeeds, is then not found, is found, and is not found again.
//
// A [Simulator] is reached by HTTP: over [Simulator.Transport] without any
// socket, so it can live in a testing/synctest bubble, or as a server by
// [Simulator.Run]. It is driven through its Go methods (CreateTenant, Consent,
// AddFault, Journal and so on) or by the same things over its admin plane.
//
// The one tricky idea is how replicas are kept: there are none. Everything that
// replicates is a history of versions, and every version carries, per plane and
// replica, the moment from which that replica shows it. Those moments are drawn
// when the change is made and are part of it, so they survive a restart. A
// request lands on one random replica and sees the last version that replica
// shows by then.
//
// All time is the ordinary time package's.
package entrasim
