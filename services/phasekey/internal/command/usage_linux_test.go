package command_test

import (
	"strings"
	"testing"
)

func TestMain_SaysHowWhatIsMisusedIsUsed(t *testing.T) {
	for _, tt := range []struct {
		args string
		want string
	}{
		{"integrations get", "usage: phasekey integrations get INTEGRATION [flags]; see `phasekey integrations get --help`"},
		{"integrations create net", `"tenant" not set; usage: phasekey integrations create ID [flags]`},
		{"integrations list --nothing", "unknown flag: --nothing; usage: phasekey integrations list [flags]"},
		{"integrations nothing", "see `phasekey integrations --help`"},
		{"consnt", "consent; see `phasekey --help`"},
		{"consent start net --expires-in -5m", "duration of more than nothing"},
		{"grants create p --run r --phase planning --expires-in 0s", "duration of more than nothing"},
		{"grants extend g --expires-in -1h", "duration of more than nothing"},
		{"rotations pause --for -1h --reason r", "duration of more than nothing"},
		{"integrations list --watch --interval -1s", "duration of more than nothing"},
		{"integrations list --limit -5", `"--limit"`},
		{"audit verify --max-age -10m --key k", "0 for any age"},
	} {
		r := start(t, nil, nil, strings.Fields(tt.args)...)
		r.end(1)
		if said := r.err.String(); !strings.Contains(said, tt.want) || strings.Count(said, "\n") != 1 {
			t.Errorf("%s: %q does not say %q", tt.args, said, tt.want)
		}
	}
}

func TestMain_DoesNotExplainUsageToWhoKnowsIt(t *testing.T) {
	r := start(t, nil, nil, "integrations", "list", "--contexts-file", t.TempDir()+"/none")
	r.end(1)
	if said := r.err.String(); !strings.Contains(said, "phasekey context set") || strings.Contains(said, "--help") {
		t.Errorf("%q", said)
	}
}
