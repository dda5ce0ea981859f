package story

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// outcome is one line of the table.
type outcome struct {
	Step     string        `json:"step"`
	Expected string        `json:"expected"`
	Seen     string        `json:"seen"`
	Took     time.Duration `json:"took"`
}

func (o outcome) ok() bool { return o.Seen == o.Expected }

// report writes the table and the verdict, and tells whether all went as expected.
func report(w io.Writer, outcomes []outcome) (bool, error) {
	var table strings.Builder
	tab := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tab, "\t#\tstep\texpected\tseen\tms")
	var wrong []string
	for i, o := range outcomes {
		mark := "✓"
		if !o.ok() {
			mark = "✗"
			wrong = append(wrong, fmt.Sprintf("%d (%s): expected %s, saw %s", i+1, o.Step, o.Expected, o.Seen))
		}
		fmt.Fprintf(tab, "%s\t%d\t%s\t%s\t%s\t%d\n", mark, i+1, o.Step, o.Expected, o.Seen, o.Took.Milliseconds())
	}
	if err := tab.Flush(); err != nil {
		return false, err
	}
	verdict := "demo: ok"
	if len(wrong) > 0 {
		verdict = "demo: not ok at step " + strings.Join(wrong, "; step ")
	}
	_, err := fmt.Fprintf(w, "\n%s\n%s\n", table.String(), verdict)
	return len(wrong) == 0, err
}
