package operator

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// printer writes what commands answer.
type printer struct {
	out   io.Writer
	notes io.Writer // what is said beside the answer
	json  bool

	watching bool
	interval time.Duration
	limit    int
}

// column is one thing to know about a message. A list shows those with a head; a card shows all, by their labels.
type column[M proto.Message] struct {
	head  string
	label string
	cell  func(M) string
}

// view is what people see of a kind of message.
type view[M proto.Message] []column[M]

// inList are the columns of a list.
func (v view[M]) inList() (heads []string, cells []func(M) string) {
	for _, c := range v {
		if c.head != "" {
			heads = append(heads, c.head)
			cells = append(cells, c.cell)
		}
	}
	return heads, cells
}

// none stands where there is nothing to say.
const none = "-"

func orNone(text string) string {
	if text == "" {
		return none
	}
	return text
}

// card prints one message.
func card[M proto.Message](p *printer, v view[M], m M) error {
	if p.json {
		return p.document(m)
	}
	w := tabwriter.NewWriter(p.out, 0, 0, 2, ' ', 0)
	for _, c := range v {
		label := c.label
		if label == "" {
			label = strings.ToUpper(c.head[:1]) + strings.ToLower(c.head[1:])
		}
		for i, line := range strings.Split(c.cell(m), "\n") {
			if i > 0 {
				label = ""
			}
			if _, err := fmt.Fprintf(w, "%s\t%s\n", label, orNone(clean(line))); err != nil {
				return err
			}
		}
	}
	return w.Flush()
}

// table prints several.
func table[M proto.Message](p *printer, v view[M], list []M) error {
	heads, cells := v.inList()
	w := tabwriter.NewWriter(p.out, 0, 0, 2, ' ', 0)
	if _, err := fmt.Fprintln(w, strings.Join(heads, "\t")); err != nil {
		return err
	}
	for _, m := range list {
		if _, err := fmt.Fprintln(w, row(cells, m)); err != nil {
			return err
		}
	}
	return w.Flush()
}

func row[M proto.Message](cells []func(M) string, m M) string {
	out := make([]string, len(cells))
	for i, cell := range cells {
		text := cell(m)
		if first, _, more := strings.Cut(text, "\n"); more {
			text = first + " …"
		}
		out[i] = orNone(clean(text))
	}
	return strings.Join(out, "\t")
}

// clean keeps texts that others chose from moving the cursor, or the columns.
func clean(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) {
			return unicode.ReplacementChar
		}
		return r
	}, text)
}

var (
	documents = protojson.MarshalOptions{Multiline: true, Indent: "  "}
	lines     = protojson.MarshalOptions{}
)

// document prints a message as JSON.
func (p *printer) document(m proto.Message) error {
	text, err := documents.Marshal(m)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(p.out, "%s\n", text)
	return err
}

// line prints a message as one line of JSON.
func (p *printer) line(m proto.Message) error {
	text, err := lines.Marshal(m)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(p.out, "%s\n", text)
	return err
}

// note says something beside the answer.
func (p *printer) note(format string, args ...any) {
	_, _ = fmt.Fprintf(p.notes, format+"\n", args...)
}

// named is a message with a resource name, or another one by which it can be told from its like.
type named interface {
	proto.Message
	GetName() string
}

// page fetches one page of a list.
type page[R any] func(ctx context.Context, size int32, token string) (R, error)

// all fetches pages until the limit is reached or the list ends, into one answer.
func all[R interface {
	proto.Message
	GetNextPageToken() string
}, M any](ctx context.Context, p *printer, fetch page[R], items func(R) *[]M,
) (R, error) {
	var (
		answer R
		list   []M
		token  string
	)
	for {
		size := int32(1000)
		if p.limit > 0 {
			size = int32(min(1000, p.limit-len(list))) //nolint:gosec // at most a thousand
		}
		next, err := fetch(ctx, size, token)
		if err != nil {
			return answer, err
		}
		answer, list, token = next, append(list, *items(next)...), next.GetNextPageToken()
		if token == "" || p.limit > 0 && len(list) >= p.limit {
			break
		}
	}
	*items(answer) = list
	if token != "" {
		p.note("there are more than %d: --limit 0 shows all", p.limit)
	}
	return answer, nil
}

// show prints a list once or, with --watch, goes on printing what changes.
func show[R interface {
	proto.Message
	GetNextPageToken() string
}, M named](ctx context.Context, p *printer, v view[M], fetch page[R], items func(R) *[]M,
) error {
	if p.watching {
		return watch(ctx, p, v, func(ctx context.Context) ([]M, error) {
			answer, err := all(ctx, p, fetch, items)
			if err != nil {
				return nil, err
			}
			return *items(answer), nil
		})
	}
	answer, err := all(ctx, p, fetch, items)
	switch {
	case err != nil:
		return err
	case p.json:
		return p.document(answer)
	}
	return table(p, v, *items(answer))
}

// showOne prints one message, or what changes of it.
func showOne[M named](ctx context.Context, p *printer, v view[M], get func(ctx context.Context) (M, error)) error {
	if p.watching {
		return watch(ctx, p, v, func(ctx context.Context) ([]M, error) {
			m, err := get(ctx)
			if err != nil {
				return nil, err
			}
			return []M{m}, nil
		})
	}
	m, err := get(ctx)
	if err != nil {
		return err
	}
	return card(p, v, m)
}

// rows are printed one after another, in columns as wide as what was in them so far.
type rows struct{ widths []int }

// fit makes room for a row.
func (r *rows) fit(texts []string) {
	for i, text := range texts {
		if i == len(r.widths) {
			r.widths = append(r.widths, 0)
		}
		r.widths[i] = max(r.widths[i], len([]rune(text)))
	}
}

func (r *rows) print(out io.Writer, texts []string) error {
	r.fit(texts)
	var b strings.Builder
	for i, text := range texts[:len(texts)-1] {
		fmt.Fprintf(&b, "%-*s", r.widths[i]+2, text)
	}
	_, err := fmt.Fprintln(out, b.String()+texts[len(texts)-1])
	return err
}

// watch looks again and again, and prints each message that is new or has changed: a row, or a line of JSON. What is gone is said as
// a note.
func watch[M named](ctx context.Context, p *printer, v view[M], look func(ctx context.Context) ([]M, error)) error {
	heads, cells := v.inList()
	var rows rows
	last := map[string]M{}
	for first := true; ; first = false {
		var list []M
		err := p.persist(ctx, !first, func(ctx context.Context) (came bool, err error) {
			list, err = look(ctx)
			return false, err
		})
		if err != nil {
			return err
		}
		if first && !p.json {
			for _, m := range list {
				rows.fit(strings.Split(row(cells, m), "\t"))
			}
			if err := rows.print(p.out, heads); err != nil {
				return err
			}
		}
		here := make(map[string]M, len(list))
		for _, m := range list {
			here[m.GetName()] = m
			if before, known := last[m.GetName()]; known && proto.Equal(before, m) {
				continue
			}
			if p.json {
				err = p.line(m)
			} else {
				err = rows.print(p.out, strings.Split(row(cells, m), "\t"))
			}
			if err != nil {
				return err
			}
		}
		for name := range last {
			if _, still := here[name]; !still {
				p.note("%s is gone", name)
			}
		}
		last = here
		if !pause(ctx, p.interval) {
			return ctx.Err()
		}
	}
}

// pause waits, and reports whether it was to the end.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// word is an enum's value without what all its values begin with: ACTIVE for STATE_ACTIVE. Empty for the one that says nothing.
func word(e protoreflect.Enum) string {
	value := e.Descriptor().Values().ByNumber(e.Number())
	switch {
	case value == nil:
		return fmt.Sprint(e.Number())
	case e.Number() == 0:
		return ""
	}
	return strings.TrimPrefix(string(value.Name()), prefix(e.Descriptor()))
}

// prefix is what all values of an enum begin with.
func prefix(d protoreflect.EnumDescriptor) string {
	return strings.TrimSuffix(string(d.Values().Get(0).Name()), "UNSPECIFIED")
}

func words[E protoreflect.Enum](list []E) string {
	out := make([]string, len(list))
	for i, e := range list {
		out[i] = word(e)
	}
	return strings.Join(out, ", ")
}

// choices are the words that an enum has, as flags take them: client-secret for CREDENTIAL_KIND_CLIENT_SECRET.
func choices[E protoreflect.Enum]() []string {
	var zero E
	values := zero.Descriptor().Values()
	var out []string
	for i := 1; i < values.Len(); i++ {
		name := strings.TrimPrefix(string(values.Get(i).Name()), prefix(zero.Descriptor()))
		out = append(out, strings.ToLower(strings.ReplaceAll(name, "_", "-")))
	}
	return out
}

// parse reads a flag's word as an enum's value.
func parse[E interface {
	~int32
	protoreflect.Enum
}](text string) (E, error) {
	var zero E
	name := prefix(zero.Descriptor()) + strings.ToUpper(strings.ReplaceAll(text, "-", "_"))
	value := zero.Descriptor().Values().ByName(protoreflect.Name(name))
	if value == nil || value.Number() == 0 {
		return 0, fmt.Errorf("%q is none of %s", text, strings.Join(choices[E](), ", "))
	}
	return E(value.Number()), nil
}

func parseAll[E interface {
	~int32
	protoreflect.Enum
}](texts []string) ([]E, error) {
	var out []E
	for _, text := range texts {
		e, err := parse[E](text)
		if err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, nil
}

// id is a name's last segment.
func id(name string) string { return name[strings.LastIndexByte(name, '/')+1:] }

// age says how long ago something was, or how long it is until then.
func age(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	d := time.Since(t.AsTime())
	if d < 0 {
		return "in " + about(-d)
	}
	return about(d)
}

// about is a duration to the unit that matters.
func about(d time.Duration) string {
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// at is a time with how long ago it was.
func at(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().UTC().Format(time.RFC3339) + " (" + age(t) + ")"
}

func period(d *durationpb.Duration) string {
	if d == nil {
		return ""
	}
	return d.AsDuration().String()
}
