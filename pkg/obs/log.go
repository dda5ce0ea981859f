package obs

import (
	"context"
	"fmt"
	"io"
	"log/slog"

	"phasekey.dev/pkg/redact"
)

// Format is how log records are written. The zero value is FormatJSON.
type Format string

// The formats there are.
const (
	FormatJSON Format = "json"
	FormatText Format = "text"
)

// UnmarshalText refuses anything but a known format.
func (f *Format) UnmarshalText(b []byte) error {
	switch v := Format(b); v {
	case FormatJSON, FormatText:
		*f = v
		return nil
	default:
		return fmt.Errorf("unknown log format %q (want json or text)", b)
	}
}

// LogConfig is the part of a service's configuration that is about its log.
type LogConfig struct {
	// Level is debug, info (the zero value), warn or error.
	Level slog.Level `yaml:"level"`
	// Format is json (the zero value) or text.
	Format Format `yaml:"format"`
}

// NewLogger returns a logger that writes to w through redact's handler, and adds the request's ID where the context
// has one.
func NewLogger(w io.Writer, level slog.Leveler, format Format) *slog.Logger {
	opts := &slog.HandlerOptions{Level: level}
	var h slog.Handler = slog.NewJSONHandler(w, opts)
	if format == FormatText {
		h = slog.NewTextHandler(w, opts)
	}
	return slog.New(requestHandler{redact.NewHandler(h)})
}

// requestHandler adds the request's ID to each record made while a request is served.
type requestHandler struct{ slog.Handler }

// Handle implements slog.Handler.
func (h requestHandler) Handle(ctx context.Context, r slog.Record) error {
	if id := RequestID(ctx); id != "" {
		r = r.Clone()
		r.AddAttrs(slog.String(KeyRequestID, id))
	}
	return h.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (h requestHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return requestHandler{h.Handler.WithAttrs(attrs)}
}

// WithGroup implements slog.Handler.
func (h requestHandler) WithGroup(name string) slog.Handler {
	return requestHandler{h.Handler.WithGroup(name)}
}
