module phasekey.dev/pkg/entrasim

go 1.26.7
