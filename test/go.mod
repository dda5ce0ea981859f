module phasekey.dev/test

go 1.26.7

replace (
	phasekey.dev/gen => ../gen
	phasekey.dev/pkg => ../pkg
	phasekey.dev/pkg/entrasim => ../pkg/entrasim
	phasekey.dev/pkg/runner => ../pkg/runner
)
