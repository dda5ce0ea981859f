package grpcserver_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/dynamicpb"

	"phasekey.dev/pkg/grpctest"
	"phasekey.dev/pkg/internal/notetest"
	"phasekey.dev/pkg/logtest"
	"phasekey.dev/pkg/obs"
)

// Whatever is logged about a call, at whatever level, its secrets are not.
func TestAccessLog_Canaries(t *testing.T) {
	t.Parallel()
	const canary = "CANARY-9f2c"
	for _, format := range []obs.Format{obs.FormatJSON, obs.FormatText} {
		t.Run(string(format), func(t *testing.T) {
			t.Parallel()
			var log logtest.Transcript
			cfg := config(notetest.Service{Get: func(context.Context, *dynamicpb.Message) (*dynamicpb.Message, error) {
				return nil, errors.New("a bug")
			}})
			cfg.Log = obs.NewLogger(&log, slog.LevelDebug, format)
			srv := grpctest.Start(t, cfg)
			conn := srv.Dial(t, operator)
			request := fmt.Sprintf(`
				name: "accounts/acme/notes/visible" note { token: %[1]q keys: %[1]q text: "plain" }
				by_key { key: "k" value { token: %[1]q } }
				extra { [type.googleapis.com/phasekey.notetest.v1.Note] { token: %[1]q } }`, canary)
			ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+canary)
			for _, method := range []string{"Create", "Get"} {
				_ = conn.Invoke(ctx, notetest.Method(method), notetest.Request(request), notetest.Note(""))
			}
			_ = open(ctx, t, conn, "Watch", request).RecvMsg(notetest.Note(""))
			if err := srv.Stop(); err != nil {
				t.Fatal(err)
			}
			if strings.Contains(log.String(), canary) || strings.Contains(log.String(), "Q0FOQVJZ") {
				t.Errorf("a secret is in the log:\n%s", log.String())
			}
			if n := strings.Count(log.String(), "notes/visible"); n != 3 {
				t.Errorf("%d of 3 requests are in the log, so the test proves nothing:\n%s", n, log.String())
			}
		})
	}
}

func TestAccessLog_LevelByCode(t *testing.T) {
	t.Parallel()
	for code, level := range map[codes.Code]string{
		codes.OK: "INFO", codes.Canceled: "INFO", codes.NotFound: "WARN", codes.PermissionDenied: "WARN",
		codes.Unavailable: "WARN", codes.Internal: "ERROR",
	} {
		t.Run(code.String(), func(t *testing.T) {
			t.Parallel()
			var log logtest.Transcript
			cfg := config(notetest.Service{Get: func(context.Context, *dynamicpb.Message) (*dynamicpb.Message, error) {
				return notetest.Note(""), status.Error(code, "x")
			}})
			cfg.Log = obs.NewLogger(&log, slog.LevelInfo, obs.FormatJSON)
			srv := grpctest.Start(t, cfg)
			_, _ = call(t, srv.Dial(t, operator), "Get", "")
			if err := srv.Stop(); err != nil {
				t.Fatal(err)
			}
			for line := range strings.SplitSeq(log.String(), "\n") {
				if strings.Contains(line, `"msg":"call handled"`) {
					for _, w := range []string{`"level":"` + level + `"`, `"code":"` + code.String() + `"`, `"peer":"` + operator + `"`, `"request_id":"`, `"role":"operator"`} {
						if !strings.Contains(line, w) {
							t.Errorf("%s\nlacks %s", line, w)
						}
					}
					return
				}
			}
			t.Errorf("no access log:\n%s", log.String())
		})
	}
}
