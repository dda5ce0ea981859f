package rotation

// Log keys of this package.
const (
	keyIntegration = "integration_uid"
	keyVersion     = "version_id"
	keyNumber      = "version_number"
	keyShard       = "shard"
	keyEpoch       = "epoch"
	keyOp          = "op"
	keyFrom        = "from"
	keyTo          = "to"
	keyClass       = "class"
	keyCode        = "code"
	keyPasswords   = "foreign_passwords"
	keyTrusts      = "foreign_federated_credentials"
	keyClient      = "client_request_id"
	keyCloud       = "cloud"
	keyLeases      = "leases"
)
