module phasekey.dev/pkg/entrasim

go 1.26.7

require (
	github.com/golang-jwt/jwt/v5 v5.3.1
	github.com/google/uuid v1.6.0
)
