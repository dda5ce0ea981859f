// Package notetest is a small gRPC service for the tests of the chassis, which may not import the suite's own. Its
// descriptors are written here as text, with every option that the chassis reads, and its messages are dynamic.
package notetest

import (
	"context"
	"fmt"
	"sync"

	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/anypb"
)

// Name is the service's full name.
const Name = "phasekey.notetest.v1.NoteService"

// source is the file's descriptor.
const source = `
name: "phasekey/notetest/v1/note.proto"
package: "phasekey.notetest.v1"
syntax: "proto3"
dependency: ["google/api/resource.proto", "buf/validate/validate.proto", "google/protobuf/any.proto"]
message_type {
  name: "Note"
  options { [google.api.resource] { type: "notetest/Note" pattern: "accounts/{account}/notes/{note}" } }
  field { name: "name" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL }
  field { name: "text" number: 2 type: TYPE_STRING label: LABEL_OPTIONAL
    options { [buf.validate.field] { string { max_len: 100 } } } }
  field { name: "token" number: 3 type: TYPE_STRING label: LABEL_OPTIONAL options { debug_redact: true } }
  field { name: "keys" number: 4 type: TYPE_BYTES label: LABEL_REPEATED options { debug_redact: true } }
}
message_type {
  name: "Request"
  field { name: "name" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL
    options { [google.api.resource_reference] { type: "notetest/Note" }
              [buf.validate.field] { string { pattern: "^(accounts/.*)?$" } } } }
  field { name: "parent" number: 2 type: TYPE_STRING label: LABEL_OPTIONAL
    options { [google.api.resource_reference] { child_type: "notetest/Note" } } }
  field { name: "note" number: 3 type: TYPE_MESSAGE type_name: ".phasekey.notetest.v1.Note" label: LABEL_OPTIONAL }
  field { name: "related" number: 4 type: TYPE_STRING label: LABEL_REPEATED
    options { [google.api.resource_reference] { type: "notetest/Note" } } }
  field { name: "by_key" number: 5 type: TYPE_MESSAGE type_name: ".phasekey.notetest.v1.Request.ByKeyEntry" label: LABEL_REPEATED }
  field { name: "extra" number: 6 type: TYPE_MESSAGE type_name: ".google.protobuf.Any" label: LABEL_OPTIONAL }
  field { name: "page_size" number: 7 type: TYPE_INT32 label: LABEL_OPTIONAL
    options { [buf.validate.field] { int32 { gte: 0 lte: 100 } } } }
  nested_type {
    name: "ByKeyEntry"
    options { map_entry: true }
    field { name: "key" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL }
    field { name: "value" number: 2 type: TYPE_MESSAGE type_name: ".phasekey.notetest.v1.Note" label: LABEL_OPTIONAL }
  }
}
service {
  name: "NoteService"
  method { name: "Get" input_type: ".phasekey.notetest.v1.Request" output_type: ".phasekey.notetest.v1.Note"
    options { idempotency_level: NO_SIDE_EFFECTS } }
  method { name: "Create" input_type: ".phasekey.notetest.v1.Request" output_type: ".phasekey.notetest.v1.Note" }
  method { name: "Fetch" input_type: ".phasekey.notetest.v1.Request" output_type: ".phasekey.notetest.v1.Note" }
  method { name: "Watch" input_type: ".phasekey.notetest.v1.Request" output_type: ".phasekey.notetest.v1.Note" server_streaming: true }
  method { name: "Chat" input_type: ".phasekey.notetest.v1.Request" output_type: ".phasekey.notetest.v1.Note" client_streaming: true server_streaming: true }
}
`

// file parses the source and makes it known to the process, as generated code does.
var file = sync.OnceValue(func() protoreflect.FileDescriptor {
	// Their descriptors are dependencies.
	_, _, _ = annotations.E_Resource, validate.E_Field, anypb.File_google_protobuf_any_proto
	fdp := &descriptorpb.FileDescriptorProto{}
	must(prototext.Unmarshal([]byte(source), fdp))
	fd, err := protodesc.NewFile(fdp, protoregistry.GlobalFiles)
	must(err)
	must(protoregistry.GlobalFiles.RegisterFile(fd))
	for i := range fd.Messages().Len() {
		must(protoregistry.GlobalTypes.RegisterMessage(dynamicpb.NewMessageType(fd.Messages().Get(i))))
	}
	return fd
})

// must is for what is written in the source: if it is wrong, so is every test.
func must(err error) {
	if err != nil {
		panic(fmt.Sprintf("notetest: %v", err)) //nolint:forbidigo // test support, and a bug of the test
	}
}

// Descriptor is the service's.
func Descriptor() protoreflect.ServiceDescriptor { return file().Services().Get(0) }

// Message makes a message (Note or Request) from its text form.
func Message(name, text string) *dynamicpb.Message {
	m := dynamicpb.NewMessage(file().Messages().ByName(protoreflect.Name(name)))
	must(prototext.Unmarshal([]byte(text), m))
	return m
}

// Request makes a Request from its text form.
func Request(text string) *dynamicpb.Message { return Message("Request", text) }

// Note makes a Note from its text form.
func Note(text string) *dynamicpb.Message { return Message("Note", text) }

// Text is a field's text.
func Text(m proto.Message, field string) string {
	r := m.ProtoReflect()
	return r.Get(r.Descriptor().Fields().ByName(protoreflect.Name(field))).String()
}

// Method is a method's full name on the wire.
func Method(name string) string { return "/" + Name + "/" + name }

// Unary is the handler of a unary method.
type Unary func(ctx context.Context, req *dynamicpb.Message) (*dynamicpb.Message, error)

// Service is an implementation; nil handlers answer with an empty note.
type Service struct {
	Get, Create, Fetch Unary
	// Watch gets its request, Chat receives for itself.
	Watch func(req *dynamicpb.Message, stream grpc.ServerStream) error
	Chat  func(stream grpc.ServerStream) error
}

// Register registers the service.
func (s Service) Register(r grpc.ServiceRegistrar) {
	file()
	r.RegisterService(&grpc.ServiceDesc{
		ServiceName: Name,
		HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{
			method("Get", s.Get), method("Create", s.Create), method("Fetch", s.Fetch),
		},
		Streams: []grpc.StreamDesc{
			{StreamName: "Watch", ServerStreams: true, Handler: func(_ any, stream grpc.ServerStream) error {
				req := Request("")
				if err := stream.RecvMsg(req); err != nil {
					return err
				}
				if s.Watch == nil {
					return stream.SendMsg(Note(""))
				}
				return s.Watch(req, stream)
			}},
			{StreamName: "Chat", ServerStreams: true, ClientStreams: true, Handler: func(_ any, stream grpc.ServerStream) error {
				if s.Chat == nil {
					return nil
				}
				return s.Chat(stream)
			}},
		},
	}, s)
}

// method does what generated code does.
func method(name string, h Unary) grpc.MethodDesc {
	if h == nil {
		h = func(context.Context, *dynamicpb.Message) (*dynamicpb.Message, error) { return Note(""), nil }
	}
	return grpc.MethodDesc{
		MethodName: name,
		Handler: func(srv any, ctx context.Context, dec func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
			req := Request("")
			if err := dec(req); err != nil {
				return nil, err
			}
			handle := func(ctx context.Context, req any) (any, error) {
				in, ok := req.(*dynamicpb.Message)
				if !ok {
					return nil, fmt.Errorf("request is a %T", req)
				}
				return h(ctx, in)
			}
			return intercept(ctx, req, &grpc.UnaryServerInfo{Server: srv, FullMethod: Method(name)}, handle)
		},
	}
}
