module phasekey.dev/gen

go 1.26.7
