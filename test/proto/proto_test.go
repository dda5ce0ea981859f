// Package proto judges the APIs as a whole, by their descriptors.
package proto

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	_ "phasekey.dev/gen/phasekey/broker/v1"
	errorv1 "phasekey.dev/gen/phasekey/error/v1"
	optionsv1 "phasekey.dev/gen/phasekey/options/v1"
	_ "phasekey.dev/gen/phasekey/registry/v1"
	_ "phasekey.dev/gen/phasekey/vault/v1"
)

func files(t *testing.T, visit func(protoreflect.FileDescriptor)) {
	t.Helper()
	count := 0
	protoregistry.GlobalFiles.RangeFiles(func(file protoreflect.FileDescriptor) bool {
		if strings.HasPrefix(string(file.Package()), "phasekey.") {
			count++
			visit(file)
		}
		return true
	})
	if count < 10 {
		t.Errorf("only %d files of ours are linked in", count)
	}
}

func TestEveryMethod_NamesItsCallers(t *testing.T) {
	methods := 0
	files(t, func(file protoreflect.FileDescriptor) {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			for j := range service.Methods().Len() {
				method := service.Methods().Get(j)
				methods++
				callers, _ := proto.GetExtension(method.Options(), optionsv1.E_Callers).([]optionsv1.Caller)
				if len(callers) == 0 {
					t.Errorf("%s names nobody who may call it", method.FullName())
				}
				for _, caller := range callers {
					if caller == optionsv1.Caller_CALLER_UNSPECIFIED {
						t.Errorf("%s names an unspecified caller", method.FullName())
					}
				}
			}
		}
	})
	if methods == 0 {
		t.Error("no methods at all")
	}
}

// secretName is what a field that holds something secret is called; paging's tokens are none.
var secretName = regexp.MustCompile(`(^|_)(secret|token|password|assertion|credential_text|private_key)$`)

func TestEverySecretField_IsRedacted(t *testing.T) {
	secrets := 0
	var messages func(protoreflect.MessageDescriptors)
	messages = func(all protoreflect.MessageDescriptors) {
		for i := range all.Len() {
			message := all.Get(i)
			messages(message.Messages())
			for j := range message.Fields().Len() {
				field := message.Fields().Get(j)
				name := string(field.Name())
				if field.Kind() == protoreflect.MessageKind || !secretName.MatchString(name) || strings.HasSuffix(name, "page_token") {
					continue
				}
				secrets++
				if options, ok := field.Options().(*descriptorpb.FieldOptions); !ok || !options.GetDebugRedact() {
					t.Errorf("%s is not debug_redact", field.FullName())
				}
			}
		}
	}
	files(t, func(file protoreflect.FileDescriptor) { messages(file.Messages()) })
	if secrets < 2 {
		t.Errorf("only %d secret fields were found", secrets)
	}
}

func TestEveryReason_IsProducedBySomeTest(t *testing.T) {
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	var tests strings.Builder
	for _, folder := range []string{"pkg", "services", "test"} {
		err := filepath.WalkDir(filepath.Join(root, folder), func(path string, entry fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, "_test.go") || strings.HasSuffix(path, "proto_test.go") {
				return err
			}
			text, err := os.ReadFile(path)
			tests.Write(text)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for number, name := range errorv1.ErrorReason_name {
		value := errorv1.ErrorReason(0).Descriptor().Values().ByNumber(protoreflect.EnumNumber(number))
		if options, ok := value.Options().(*descriptorpb.EnumValueOptions); number == 0 || ok && options.GetDeprecated() {
			continue
		}
		word := strings.TrimPrefix(name, "ERROR_REASON_")
		if !regexp.MustCompile(`"` + word + `"|ERROR_REASON_` + word + `\b|\bReason` + camel(word) + `\b`).MatchString(tests.String()) {
			t.Errorf("no test expects %s", word)
		}
	}
}

// camel is how Go names a reason of the chassis: RATE_LIMITED is RateLimited.
func camel(word string) string {
	var b strings.Builder
	for part := range strings.SplitSeq(word, "_") {
		b.WriteString(part[:1] + strings.ToLower(part[1:]))
	}
	return b.String()
}
