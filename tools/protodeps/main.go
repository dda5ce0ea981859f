// Protodeps writes the .proto files that ours import into a folder, from the descriptors linked into their Go modules, so
// that go.sum pins them and no schema registry is needed.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	_ "buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"github.com/jhump/protoreflect/v2/protoprint"
	_ "google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

var files = []string{
	"buf/validate/validate.proto",
	"google/api/field_behavior.proto",
	"google/api/field_info.proto",
	"google/api/resource.proto",
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: protodeps DIR")
		os.Exit(2)
	}
	if err := write(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "protodeps:", err)
		os.Exit(1)
	}
}

func write(dir string) error {
	descriptors := make([]protoreflect.FileDescriptor, 0, len(files))
	for _, path := range files {
		fd, err := protoregistry.GlobalFiles.FindFileByPath(path)
		if err != nil {
			return fmt.Errorf("%s is not linked in: %w", path, err)
		}
		descriptors = append(descriptors, fd)
	}
	var printer protoprint.Printer
	for _, fd := range descriptors {
		text, err := printer.PrintProtoToString(fd)
		if err != nil {
			return fmt.Errorf("print %s: %w", fd.Path(), err)
		}
		path := filepath.Join(dir, filepath.FromSlash(fd.Path()))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}
