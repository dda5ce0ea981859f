module phasekey.dev/test

go 1.26.7

replace (
	phasekey.dev/gen => ../gen
	phasekey.dev/pkg => ../pkg
	phasekey.dev/pkg/entrasim => ../pkg/entrasim
	phasekey.dev/pkg/runner => ../pkg/runner
)

require (
	phasekey.dev/gen v0.0.0
	phasekey.dev/pkg v0.0.0
)

require (
	golang.org/x/net v0.60.0 // indirect
	golang.org/x/sys v0.49.0 // indirect
	golang.org/x/text v0.42.0 // indirect
	google.golang.org/genproto/googleapis/api v0.0.0-20261104224025-d1e00e9f33ab // indirect
	google.golang.org/genproto/googleapis/rpc v0.0.0-20261104224025-d1e00e9f33ab // indirect
	google.golang.org/grpc v1.85.0 // indirect
	google.golang.org/protobuf v1.36.12 // indirect
)
