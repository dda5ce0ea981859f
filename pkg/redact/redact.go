// Package redact keeps secrets out of logs by type, not by key.
//
// It guarantees that a field marked debug_redact in its proto, at any depth (nested messages, lists, maps, packed
// Any values), is never written by a handler from NewHandler, wherever in a logged value the message hides: behind
// pointers, in slices, maps, exported struct fields, or in a LogValuer. Fields that the program does not know (unknown to the
// descriptor, or an Any of an unknown type) are left out, since nothing says that they are harmless. secret.Text redacts
// itself. It does not guarantee anything about text that somebody formatted first: a string is a string.
//
// The tricky idea: Go's own printing of messages (fmt, prototext, protojson, slog) does not honour debug_redact, so a
// message may never reach an encoder. Each one is first turned into a plain tree of maps, lists and scalars.
package redact

import (
	"context"
	"encoding"
	"encoding/json"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"phasekey.dev/pkg/secret"
)

// maxDepth bounds the walk over a logged value; what lies deeper is left out, so that cycles end.
const maxDepth = 24

// Message returns m as a log value, with every field that is marked debug_redact masked. Nothing is done until the record
// is really written.
func Message(m proto.Message) slog.LogValuer { return message{m} }

// message is a proto message on its way into a log.
type message struct{ m proto.Message }

// LogValue implements slog.LogValuer.
func (v message) LogValue() slog.Value {
	if v.m == nil || !v.m.ProtoReflect().IsValid() {
		return slog.AnyValue(nil)
	}
	return slog.AnyValue(tree(v.m.ProtoReflect(), maxDepth))
}

// tree turns a message into maps, lists and scalars, keyed by proto field names.
func tree(m protoreflect.Message, depth int) any {
	if depth == 0 {
		return "…"
	}
	switch x := m.Interface().(type) {
	case *timestamppb.Timestamp:
		return x.AsTime().Format(time.RFC3339Nano)
	case *durationpb.Duration:
		return x.AsDuration().String()
	case *fieldmaskpb.FieldMask:
		return strings.Join(x.GetPaths(), ",")
	}
	if m.Descriptor().FullName() == anyName {
		return packed(m, depth)
	}
	out := map[string]any{}
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		out[fd.TextName()] = field(fd, v, depth-1)
		return true
	})
	return out
}

// anyName is by what a packed message is known, generated or dynamic.
var anyName = (&anypb.Any{}).ProtoReflect().Descriptor().FullName()

// packed turns a packed message into a tree, if its type is known.
func packed(m protoreflect.Message, depth int) any {
	fields := m.Descriptor().Fields()
	x := &anypb.Any{
		TypeUrl: m.Get(fields.ByName("type_url")).String(),
		Value:   m.Get(fields.ByName("value")).Bytes(),
	}
	out := map[string]any{"@type": x.GetTypeUrl(), "value": secret.Redacted}
	if inner, err := x.UnmarshalNew(); err == nil {
		out["value"] = tree(inner.ProtoReflect(), depth-1)
	}
	return out
}

// field turns one populated field into a tree.
func field(fd protoreflect.FieldDescriptor, v protoreflect.Value, depth int) any {
	if o, ok := fd.Options().(*descriptorpb.FieldOptions); ok && o.GetDebugRedact() {
		return secret.Redacted
	}
	switch {
	case fd.IsMap():
		out := map[string]any{}
		v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
			out[k.String()] = scalar(fd.MapValue(), v, depth)
			return true
		})
		return out
	case fd.IsList():
		out := make([]any, v.List().Len())
		for i := range out {
			out[i] = scalar(fd, v.List().Get(i), depth)
		}
		return out
	default:
		return scalar(fd, v, depth)
	}
}

// scalar turns one value, which may be a message, into a tree.
func scalar(fd protoreflect.FieldDescriptor, v protoreflect.Value, depth int) any {
	switch fd.Kind() {
	case protoreflect.MessageKind, protoreflect.GroupKind:
		return tree(v.Message(), depth)
	case protoreflect.EnumKind:
		if d := fd.Enum().Values().ByNumber(v.Enum()); d != nil {
			return string(d.Name())
		}
		return int32(v.Enum())
	case protoreflect.BytesKind:
		return fmt.Sprintf("%d bytes", len(v.Bytes()))
	default:
		return v.Interface()
	}
}

// NewHandler returns a handler that redacts every attribute and hands the record on to h.
func NewHandler(h slog.Handler) slog.Handler { return handler{h} }

// handler redacts on the way to another handler.
type handler struct{ next slog.Handler }

// Enabled implements slog.Handler.
func (h handler) Enabled(ctx context.Context, l slog.Level) bool { return h.next.Enabled(ctx, l) }

// Handle implements slog.Handler.
func (h handler) Handle(ctx context.Context, r slog.Record) error {
	out := slog.NewRecord(r.Time, r.Level, r.Message, r.PC)
	r.Attrs(func(a slog.Attr) bool {
		out.AddAttrs(attr(a))
		return true
	})
	return h.next.Handle(ctx, out)
}

// WithAttrs implements slog.Handler.
func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	out := make([]slog.Attr, len(attrs))
	for i, a := range attrs {
		out[i] = attr(a)
	}
	return handler{h.next.WithAttrs(out)}
}

// WithGroup implements slog.Handler.
func (h handler) WithGroup(name string) slog.Handler { return handler{h.next.WithGroup(name)} }

// attr redacts one attribute.
func attr(a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindLogValuer {
		// A message that happens to be a LogValuer too says what it likes; its descriptor is what counts.
		if m, ok := a.Value.Any().(proto.Message); ok {
			a.Value = slog.AnyValue(m)
		}
	}
	v := a.Value.Resolve()
	switch v.Kind() {
	case slog.KindGroup:
		group := v.Group()
		out := make([]slog.Attr, len(group))
		for i, g := range group {
			out[i] = attr(g)
		}
		v = slog.GroupValue(out...)
	case slog.KindAny:
		if safe, changed := plain(reflect.ValueOf(v.Any()), maxDepth); changed {
			v = slog.AnyValue(safe)
		}
	default:
		// Numbers, texts and times are what they are.
	}
	return slog.Attr{Key: a.Key, Value: v}
}

// plain returns a value in which no message and no secret is left, and whether that differs from what came in: most
// values are harmless and go on as they are, so that their own encoding is kept.
func plain(v reflect.Value, depth int) (any, bool) {
	if !v.IsValid() {
		return nil, false
	}
	if depth == 0 {
		return "…", true
	}
	if v.CanInterface() {
		switch x := v.Interface().(type) {
		case secret.Text:
			return secret.Redacted, true
		case proto.Message:
			return Message(x).LogValue().Any(), true
		case protoreflect.Message:
			return tree(x, depth), true
		case error:
			// Only its text: the handlers would print just that, and what it wraps may hold messages.
			if nilPointer(v) {
				return nil, true
			}
			return x.Error(), true
		case slog.LogValuer:
			if nilPointer(v) {
				return nil, true
			}
			r := slog.AnyValue(x).Resolve()
			if r.Kind() == slog.KindGroup {
				return groupTree(r.Group(), depth), true
			}
			safe, _ := plain(reflect.ValueOf(r.Any()), depth-1)
			if safe == nil {
				safe = r.Any()
			}
			return safe, true
		case json.Marshaler, encoding.TextMarshaler:
			// Encodes itself; that is its author's own choice, as it is for secret.Text.
			return nil, false
		}
	}
	if v.Kind() == reflect.Struct && reflect.PointerTo(v.Type()).Implements(protoMessage) {
		// A message by value, which it should never be; its methods are on the pointer.
		p := reflect.New(v.Type())
		p.Elem().Set(v)
		return plain(p, depth-1)
	}
	return composite(v, depth)
}

// protoMessage is the type of proto.Message.
var protoMessage = reflect.TypeFor[proto.Message]()

// groupTree turns a group that stands inside another value into a map.
func groupTree(group []slog.Attr, depth int) map[string]any {
	out := make(map[string]any, len(group))
	for _, a := range group {
		a = attr(a)
		if a.Value.Kind() == slog.KindGroup {
			out[a.Key] = groupTree(a.Value.Group(), depth-1)
			continue
		}
		out[a.Key] = a.Value.Any()
	}
	return out
}

// nilPointer reports whether a method call on v would be one on a nil pointer.
func nilPointer(v reflect.Value) bool { return v.Kind() == reflect.Pointer && v.IsNil() }

// composite walks into pointers, lists, maps and structs. A part that is harmless stays what it is.
func composite(v reflect.Value, depth int) (any, bool) {
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if v.IsNil() {
			return nil, false
		}
		return plain(v.Elem(), depth-1)
	case reflect.Slice, reflect.Array:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return nil, false
		}
		out, changed := make([]any, v.Len()), false
		for i := range out {
			var c bool
			out[i], c = part(v.Index(i), depth)
			changed = changed || c
		}
		return out, changed
	case reflect.Map:
		out, changed := make(map[string]any, v.Len()), false
		for it := v.MapRange(); it.Next(); {
			safe, c := part(it.Value(), depth)
			out[fmt.Sprint(it.Key())] = safe
			changed = changed || c
		}
		return out, changed
	case reflect.Struct:
		out, changed := make(map[string]any, v.NumField()), false
		for i := range v.NumField() {
			f := v.Type().Field(i)
			if !f.IsExported() {
				continue
			}
			safe, c := part(v.Field(i), depth)
			out[f.Name] = safe
			changed = changed || c
		}
		return out, changed
	default:
		return nil, false
	}
}

// part redacts one part of a composite value.
func part(v reflect.Value, depth int) (any, bool) {
	if safe, changed := plain(v, depth-1); changed {
		return safe, true
	}
	if v.CanInterface() {
		return v.Interface(), false
	}
	return nil, false
}
