package operator

import (
	"errors"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

var errNothingGiven = errors.New("nothing to change: give at least one flag")

// mask names the fields of which the flags were given.
func mask(flags *pflag.FlagSet, fields map[string]string) *fieldmaskpb.FieldMask {
	m := &fieldmaskpb.FieldMask{}
	flags.Visit(func(f *pflag.Flag) {
		if field, ok := fields[f.Name]; ok {
			m.Paths = append(m.Paths, field)
		}
	})
	return m
}

// duration is a flag's duration that may be absent.
func duration(c *cobra.Command, flag string) (*durationpb.Duration, error) {
	if !c.Flags().Changed(flag) {
		return nil, nil
	}
	d, err := c.Flags().GetDuration(flag)
	if err != nil || d == 0 {
		return nil, err
	}
	return durationpb.New(d), nil
}

// enumFlag has a flag's words completed.
func enumFlag(c *cobra.Command, flag string, words []string) {
	_ = c.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
}

// requestIDFlag adds --request-id, by which a repeat is known for one. Without it each call is of its own.
func requestIDFlag(c *cobra.Command, requestID *string) {
	c.Flags().StringVar(requestID, "request-id", uuid.NewString(), "a UUID: a repeat with the same one does nothing twice")
	c.Flags().Lookup("request-id").DefValue = "a new one"
}

// span is a flag's duration that is more than nothing.
type span time.Duration

// lifeFlag adds a duration that is refused unless it is more than nothing. The default 0 leaves it to the service.
func lifeFlag(c *cobra.Command, d *time.Duration, name string, otherwise time.Duration, usage string) {
	*d = otherwise
	c.Flags().Var((*span)(d), name, usage)
}

// Set implements pflag.Value.
func (s *span) Set(text string) error {
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return errors.New("say a duration of more than nothing, such as 90s, 30m or 12h")
	}
	*s = span(d)
	return nil
}

// String implements pflag.Value.
func (s *span) String() string {
	if *s == 0 {
		return ""
	}
	return time.Duration(*s).String()
}

// Type implements pflag.Value.
func (*span) Type() string { return "duration" }
