package grpcserver_test

import (
	"errors"
	"slices"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"phasekey.dev/pkg/grpcserver"
	"phasekey.dev/pkg/grpctest"
	"phasekey.dev/pkg/internal/notetest"
)

// What a handler has encoded is sent as it is, its parts one after another, among other messages; and the parts are as they were.
func TestStream_SendsWhatIsEncoded(t *testing.T) {
	t.Parallel()
	const text = `name: "accounts/acme/notes/1" text: "encoded"`
	whole, err := proto.Marshal(notetest.Note(text))
	if err != nil {
		t.Fatal(err)
	}
	parts := grpcserver.Encoded{slices.Clone(whole[:9]), {}, slices.Clone(whole[9:])}
	srv := grpctest.Start(t, config(notetest.Service{Chat: func(stream grpc.ServerStream) error {
		return errors.Join(stream.RecvMsg(notetest.Note("")), stream.SendMsg(parts), stream.SendMsg(notetest.Note(`text: "made"`)), stream.SendMsg(parts))
	}}))
	stream := open(t.Context(), t, srv.Dial(t, platform), "Chat", `name: "accounts/acme/notes/1"`)
	for _, text := range []string{text, `text: "made"`, text} {
		m := notetest.Note("")
		if err := stream.RecvMsg(m); err != nil || !proto.Equal(m, notetest.Note(text)) {
			t.Errorf("received %v, %v; want %s", m, err, text)
		}
	}
	if !slices.Equal(slices.Concat(parts...), whole) {
		t.Error("what was sent is another now")
	}
}
