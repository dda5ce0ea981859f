module phasekey.dev/services/phasekey

go 1.26.7

replace (
	phasekey.dev/gen => ../../gen
	phasekey.dev/pkg => ../../pkg
	phasekey.dev/pkg/entrasim => ../../pkg/entrasim
	phasekey.dev/pkg/runner => ../../pkg/runner
	phasekey.dev/services/registry => ../registry
	phasekey.dev/services/broker => ../broker
	phasekey.dev/services/vault => ../vault
)
