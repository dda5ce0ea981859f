package obs

// Log keys shared by all services: snake_case, one meaning each.
const (
	KeyService   = "service"
	KeyListener  = "listener"
	KeyMethod    = "method"
	KeyCode      = "code"
	KeyReason    = "reason"
	KeyError     = "error"
	KeyStack     = "stack"
	KeyRequestID = "request_id"
	KeyRequest   = "request"
	KeyPeer      = "peer"
	KeyRole      = "role"
	KeyAddress   = "address"
	KeyDuration  = "duration"
	KeyFile      = "file"
	KeyConfig    = "config"
	KeyResource  = "resource"
)
