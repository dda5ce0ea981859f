package credential

import "time"

// Action is the one thing to do next. Every action but Wait, Apply, Begin and EndLeases is one request to Entra or to the registry;
// what came of it goes back through the method of Facts that is named after it.
type Action interface {
	// Op names the action in logs and metrics.
	Op() string
}

// Wait: nothing to do before Until; zero means until something changes.
type Wait struct {
	Until time.Time
	// Unlisted is set where nothing is done because the registry does not list the integration, and did not have it deleted.
	Unlisted bool
	// Again is set where a write failed that is wanted still: it waits to be tried again.
	Again bool
}

// Apply: a transition that asks nobody. The change is to be stored as it is.
type Apply struct {
	Change Change
	// Why is the reason in a word, for the log.
	Why string
}

// Ensure: make the application, or, of one that was made already, what differs of it from what is wanted. Store Ensuring first.
type Ensure struct{}

// Read: look up the application and its passwords.
type Read struct{}

// Add: make a password. Store Intending first, or Resending for a version that is INTENDED already.
type Add struct {
	// Version is the INTENDED version to try again; its ID is empty for a new one.
	Version Version
	// End is when the password shall expire.
	End time.Time
}

// AskHome: ask the home tenant for a token, to see whether it knows the application.
type AskHome struct{ Version Version }

// Ask: ask the customer's tenant for a token, to see whether consent and credential hold.
type Ask struct{ Version Version }

// Prove: likewise, as one proof of a version.
type Prove struct{ Version Version }

// Remove: remove a version's password.
type Remove struct{ Version Version }

// EnsureTrust: make the application's federated credentials, or what differs of them from what is wanted. Store Trusting first.
type EnsureTrust struct{}

// Untrust: remove the application's federated credentials.
type Untrust struct{}

// Begin: begin a federated version. It asks nobody; store Begun.
type Begin struct{}

// Sweep: remove a password that nobody can use.
type Sweep struct{ Stray Stray }

// EndLeases: close the integration's leases and release what they hold, the last of them in one transaction with LeasesEnded.
type EndLeases struct{}

// Delete: delete the application.
type Delete struct{}

// Purge: delete it for good.
type Purge struct{}

// Forget: tell the registry that it is gone.
type Forget struct{}

// Op implements Action.
func (Wait) Op() string { return "wait" }

// Op implements Action.
func (Apply) Op() string { return "apply" }

// Op implements Action.
func (Ensure) Op() string { return "ensure_application" }

// Op implements Action.
func (Read) Op() string { return "read_application" }

// Op implements Action.
func (Add) Op() string { return "add_password" }

// Op implements Action.
func (AskHome) Op() string { return "ask_home_tenant" }

// Op implements Action.
func (Ask) Op() string { return "ask_tenant" }

// Op implements Action.
func (Prove) Op() string { return "prove" }

// Op implements Action.
func (Remove) Op() string { return "remove_password" }

// Op implements Action.
func (EnsureTrust) Op() string { return "ensure_federated_credentials" }

// Op implements Action.
func (Untrust) Op() string { return "remove_federated_credentials" }

// Op implements Action.
func (Begin) Op() string { return "begin_federated" }

// Op implements Action.
func (Sweep) Op() string { return "sweep_password" }

// Op implements Action.
func (EndLeases) Op() string { return "end_leases" }

// Op implements Action.
func (Delete) Op() string { return "delete_application" }

// Op implements Action.
func (Purge) Op() string { return "purge_application" }

// Op implements Action.
func (Forget) Op() string { return "forget" }
