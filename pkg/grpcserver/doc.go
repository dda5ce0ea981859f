// Package grpcserver is one gRPC listener with everything around the services on it.
//
// It guarantees that a method which does not declare its callers stops the server from starting; that no handler sees a
// request before its caller is authenticated (by the SPIFFE ID of the TLS peer), authorized (by role, and by the accounts whose
// resources the request names), within its rate, and its fields valid; that errors which nobody mapped leave as
// INTERNAL with no more than a request ID, and are logged in full; that panics are errors; that health goes both ways; and
// that stopping is ordered and bounded. It knows no service: who may call what is a function of the method's descriptor. It
// does not authenticate bearer grants (methods of RoleGrant do that themselves), and it does not filter responses: a handler
// that answers a request for one account with data of another is not caught here.
//
// The chain, outermost first: recovery, request ID, metrics, access log with masking, authentication, authorization,
// rate limit, deadline or idle limit, validation, handler. Health and reflection go through it like everything else.
//
// The tricky idea: each link is written once, as a step over a call that is either unary or a stream. What needs the message
// itself (account limits, validation) is registered by its step as a check on received messages: for a unary call the message is there and the
// check runs at once, in its place in the chain; for a stream it runs in RecvMsg. A check that fails is remembered, so a
// handler that overlooks RecvMsg's error can neither send nor end well.
package grpcserver
