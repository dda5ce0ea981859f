package prover

// Log keys of this package.
const (
	keyIntegration    = "integration"
	keyIntegrationUID = "integration_uid"
	keyUpstream       = "upstream"
	keyState          = "state"
	keyFailures       = "failures"
	keyRefusal        = "refusal"
)
