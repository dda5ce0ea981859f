module phasekey.dev/services/broker

go 1.26.7

replace (
	phasekey.dev/gen => ../../gen
	phasekey.dev/pkg => ../../pkg
	phasekey.dev/pkg/entrasim => ../../pkg/entrasim
)

require phasekey.dev/pkg v0.0.0
require phasekey.dev/gen v0.0.0
