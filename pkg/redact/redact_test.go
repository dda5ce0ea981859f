package redact_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"phasekey.dev/pkg/internal/notetest"
	"phasekey.dev/pkg/redact"
	"phasekey.dev/pkg/secret"
)

const canary = "CANARY-77aa"

// request is a message with secrets wherever one can be.
func request() *dynamicpb.Message {
	return notetest.Request(fmt.Sprintf(`
		name: "visible" note { token: %[1]q keys: %[1]q keys: "x" text: "plain" } by_key { key: "k" value { token: %[1]q } }
		extra { [type.googleapis.com/phasekey.notetest.v1.Note] { token: %[1]q text: "packed" } }`, canary))
}

// messageError is an error that carries a message.
type messageError struct{ Request proto.Message }

func (messageError) Error() string { return "visible" }

// lazy is a LogValuer that gives a message.
type lazy struct{ m proto.Message }

func (l lazy) LogValue() slog.Value { return slog.AnyValue(l.m) }

// group is a LogValuer that gives a group with a message in it.
type group struct{ m proto.Message }

func (g group) LogValue() slog.Value {
	return slog.GroupValue(slog.String("s", "visible"), slog.Any("m", g.m), slog.Group("deeper", slog.Any("m", g.m)))
}

// record is a struct as people log them.
type record struct {
	Name    string
	Request proto.Message
	List    []proto.Message
	ByKey   map[string]proto.Message
	Secret  secret.Text
	Any     any
	Next    *record
	hidden  proto.Message
}

func TestHandler_Canaries(t *testing.T) {
	t.Parallel()
	m := request()
	rec := record{Name: "visible", Request: m, List: []proto.Message{m}, ByKey: map[string]proto.Message{"k": m}, Secret: secret.New(canary), Any: m, hidden: m}
	rec.Next = &record{Name: "visible", Any: &rec.Any, Request: m}
	unknown := notetest.Note(`text: "visible"`)
	unknown.SetUnknown(protowire.AppendString(protowire.AppendTag(nil, 999, protowire.BytesType), canary))
	strange := notetest.Request(`name: "visible"`)
	packed := &anypb.Any{TypeUrl: "type.googleapis.com/un.Known", Value: []byte(canary)}
	strange.Set(strange.Descriptor().Fields().ByName("extra"), packOf(strange, packed))
	values := map[string]any{
		"a message":                    m,
		"a message as LogValuer":       redact.Message(m),
		"a list of messages":           []proto.Message{m},
		"a list of dynamic messages":   []*dynamicpb.Message{m},
		"a map of messages":            map[string]*dynamicpb.Message{"visible": m},
		"a struct":                     rec,
		"a pointer to a struct":        &rec,
		"a pointer to a pointer":       ptr(ptr(m)),
		"a list of anything":           []any{1, "visible", m, []any{m}},
		"an error with a message":      fmt.Errorf("wrapped: %w", messageError{m}),
		"joined errors":                errors.Join(messageError{m}, messageError{m}),
		"a struct with an error":       struct{ Err error }{messageError{m}},
		"a LogValuer":                  lazy{m},
		"a LogValuer in a list":        []any{lazy{m}, "visible"},
		"a LogValuer that is a group":  group{m},
		"a group in a list":            []any{group{m}},
		"a secret":                     []any{secret.New(canary), "visible"},
		"a reflected message":          m.ProtoReflect(),
		"a message with unknown field": unknown,
		"an Any of an unknown type":    strange,
		"an Any by itself":             []any{packed, "visible"},
		"an anonymous struct":          struct{ M *dynamicpb.Message }{m},
	}
	for name, v := range values {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for format, h := range handlers() {
				var out bytes.Buffer
				log := slog.New(redact.NewHandler(h(&out)))
				log.Debug("attr", slog.Any("v", v))
				log.With("v", v).WithGroup("g").Info("with", slog.Group("inner", slog.Any("v", v)))
				if s := out.String(); strings.Contains(s, canary) || strings.Contains(s, "Q0FOQVJZ") {
					t.Errorf("%s: a secret is in the log:\n%s", format, s)
				} else if strings.Count(s, "visible") < 3 && !strings.Contains(name, "by itself") {
					t.Errorf("%s: too little is in the log:\n%s", format, s)
				}
			}
		})
	}
}

// packOf gives a message field of type Any its contents.
func packOf(m *dynamicpb.Message, packed *anypb.Any) protoreflect.Value {
	extra := m.NewField(m.Descriptor().Fields().ByName("extra"))
	fields := extra.Message().Descriptor().Fields()
	extra.Message().Set(fields.ByName("type_url"), protoreflect.ValueOf(packed.GetTypeUrl()))
	extra.Message().Set(fields.ByName("value"), protoreflect.ValueOf(packed.GetValue()))
	return extra
}

func ptr[T any](v T) *T { return &v }

// handlers are what is under ours.
func handlers() map[string]func(*bytes.Buffer) slog.Handler {
	opts := &slog.HandlerOptions{Level: slog.LevelDebug}
	return map[string]func(*bytes.Buffer) slog.Handler{
		"json": func(b *bytes.Buffer) slog.Handler { return slog.NewJSONHandler(b, opts) },
		"text": func(b *bytes.Buffer) slog.Handler { return slog.NewTextHandler(b, opts) },
	}
}

func TestMessage_Shape(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	slog.New(slog.NewJSONHandler(&out, nil)).Info("m",
		"v", redact.Message(request()), "when", []any{redact.Message(timestamppb.New(time.Unix(0, 0))).LogValue().Any()}, "none", redact.Message(nil))
	var got struct {
		V struct {
			Name  string
			Note  struct{ Token, Text, Keys string }
			ByKey map[string]struct{ Token string } `json:"by_key"`
			Extra struct {
				Type  string `json:"@type"`
				Value struct{ Token, Text string }
			}
		}
		When []string
		None *int
	}
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if got.V.Name != "visible" || got.V.Note.Token != secret.Redacted || got.V.Note.Keys != secret.Redacted || got.V.Note.Text != "plain" ||
		got.V.ByKey["k"].Token != secret.Redacted || got.V.Extra.Value.Text != "packed" || got.V.Extra.Value.Token != secret.Redacted ||
		got.When[0] != "1970-01-01T00:00:00Z" || got.None != nil {
		t.Errorf("got %+v\nof %s", got, out.String())
	}
}

// What is harmless stays what it was, in its own encoding.
func TestHandler_LeavesTheRest(t *testing.T) {
	t.Parallel()
	now := time.Unix(1, 0).UTC()
	attrs := []any{"s", "x", "n", 1, "d", time.Second, "t", now, "b", []byte("raw"), "list", []int{1}, "raw", json.RawMessage(`{"a":1}`), "nil", nil, "e", errors.New("x"), "m", map[string]int{"a": 1}}
	var plain, ours bytes.Buffer
	drop := func(b *bytes.Buffer) slog.Handler {
		return slog.NewJSONHandler(b, &slog.HandlerOptions{ReplaceAttr: func(g []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}})
	}
	slog.New(drop(&plain)).Info("m", attrs...)
	slog.New(redact.NewHandler(drop(&ours))).Info("m", attrs...)
	if plain.String() != ours.String() {
		t.Errorf("was %snow %s", plain.String(), ours.String())
	}
}

// A value that contains itself ends somewhere.
func TestHandler_Cycle(t *testing.T) {
	t.Parallel()
	rec := &record{Name: "visible", Request: request()}
	rec.Next = rec
	var out bytes.Buffer
	if err := redact.NewHandler(slog.NewTextHandler(&out, nil)).Handle(context.Background(), cycleRecord(rec)); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.String(), canary) || !strings.Contains(out.String(), "visible") {
		t.Error(out.String())
	}
}

func cycleRecord(v any) slog.Record {
	r := slog.NewRecord(time.Time{}, slog.LevelInfo, "m", 0)
	r.AddAttrs(slog.Any("v", v))
	return r
}
