module phasekey.dev/pkg/runner

go 1.26.7

replace (
	phasekey.dev/gen => ../../gen
	phasekey.dev/pkg => ..
)
