package grpcserver

import (
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // registers what codec begins with
	"google.golang.org/grpc/mem"
)

// Encoded is a message that has been encoded, in parts, which may be parts of other messages, too: whoever sends almost the same to many has most of it encoded once.
// A handler may give it to a stream's SendMsg, and its parts stay as they are from then on.
type Encoded [][]byte

// codec is that of protocol buffers, and takes what is encoded for what it is.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2("proto")} }

// Marshal implements encoding.CodecV2.
func (c codec) Marshal(m any) (mem.BufferSlice, error) {
	encoded, ok := m.(Encoded)
	if !ok {
		return c.CodecV2.Marshal(m)
	}
	parts := make(mem.BufferSlice, len(encoded))
	for i, part := range encoded {
		parts[i] = mem.SliceBuffer(part)
	}
	return parts, nil
}
