package rpc

import (
	"fmt"
	"slices"
	"strings"

	"go.einride.tech/aip/fieldmask"
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"phasekey.dev/services/registry/internal/resource"
)

const (
	maskField = "update_mask"
	// maxViolations bounds an answer; a mask may have very many paths.
	maxViolations = 20
)

// checkMask refuses, naming them all, paths that name no field of the resource, also where the mask is of no use because the resource is
// created: a slip that shows only in the second call of two is found too late.
func checkMask(mask *fieldmaskpb.FieldMask, given proto.Message) error {
	if fieldmask.IsFullReplacement(mask) {
		return nil
	}
	bad := maskViolations(mask, given)
	return resource.Invalid("", bad[:min(len(bad), maxViolations)]...)
}

// merge puts into current the fields of given that the mask names, which checkMask has passed. Without a mask it takes all fields that are
// set; the mask `*` takes all, set or not. In whichever way they are named, output only fields say nothing, and immutable ones may be there if they are
// as they were, so that what was read can be sent back (AIP-134, AIP-203). The resource's field in the request is called field.
func merge(mask *fieldmaskpb.FieldMask, field string, current, given proto.Message) error {
	var paths []string
	var bad []resource.Violation
	if len(mask.GetPaths()) == 0 || fieldmask.IsFullReplacement(mask) {
		paths, bad = wholePaths(fieldmask.IsFullReplacement(mask), field, current, given)
	} else {
		paths, bad = namedPaths(mask, field, current, given)
	}
	if err := resource.Invalid("", bad...); err != nil {
		return err
	}
	if len(paths) > 0 {
		fieldmask.Update(&fieldmaskpb.FieldMask{Paths: paths}, current, given)
	}
	return nil
}

// namedPaths are the mask's paths to what can be changed. An immutable field that is named and not set is one to be emptied.
func namedPaths(mask *fieldmaskpb.FieldMask, field string, current, given proto.Message) (paths []string, bad []resource.Violation) {
	from, was := given.ProtoReflect(), current.ProtoReflect()
	fixed := map[protoreflect.Name]bool{}
	for _, path := range mask.GetPaths() {
		root, _, _ := strings.Cut(path, ".")
		fd := from.Descriptor().Fields().ByName(protoreflect.Name(root))
		switch {
		case has(fd, annotations.FieldBehavior_OUTPUT_ONLY), has(fd, annotations.FieldBehavior_IDENTIFIER):
		case has(fd, annotations.FieldBehavior_IMMUTABLE):
			if !fixed[fd.Name()] && !same(from.Get(fd), was.Get(fd)) {
				bad = append(bad, unchangeable(field, fd))
			}
			fixed[fd.Name()] = true
		default:
			paths = append(paths, path)
		}
	}
	return paths, bad
}

func unchangeable(field string, fd protoreflect.FieldDescriptor) resource.Violation {
	return resource.Violation{Field: field + "." + string(fd.Name()), Description: "cannot be changed"}
}

// wholePaths are the fields that can be changed: all of them, or those that are set. They are named one by one because
// fieldmask merges the parts of a message that is set, the seconds of a duration into the nanoseconds of another.
func wholePaths(all bool, field string, current, given proto.Message) (paths []string, bad []resource.Violation) {
	from, was := given.ProtoReflect(), current.ProtoReflect()
	fields := from.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		switch {
		case has(fd, annotations.FieldBehavior_OUTPUT_ONLY), has(fd, annotations.FieldBehavior_IDENTIFIER):
		case has(fd, annotations.FieldBehavior_IMMUTABLE):
			if from.Has(fd) && !same(from.Get(fd), was.Get(fd)) {
				bad = append(bad, unchangeable(field, fd))
			}
		case all || from.Has(fd):
			paths = append(paths, string(fd.Name()))
		}
	}
	return paths, bad
}

// same compares values of immutable fields, whose strings are stored in lower case.
func same(a, b protoreflect.Value) bool { return strings.EqualFold(a.String(), b.String()) }

// maskViolations judges each path by itself.
func maskViolations(mask *fieldmaskpb.FieldMask, given proto.Message) []resource.Violation {
	var bad []resource.Violation
	add := func(path, what string) {
		bad = append(bad, resource.Violation{Field: maskField, Description: fmt.Sprintf("path %.80q %s", path, what)})
	}
	for _, path := range mask.GetPaths() {
		root, _, _ := strings.Cut(path, ".")
		fd := given.ProtoReflect().Descriptor().Fields().ByName(protoreflect.Name(root))
		switch {
		case path == fieldmask.WildcardPath:
			add(path, "must stand alone")
		case fd == nil || fieldmask.Validate(&fieldmaskpb.FieldMask{Paths: []string{path}}, given) != nil:
			add(path, "names no field")
		}
	}
	return bad
}

func has(fd protoreflect.FieldDescriptor, behavior annotations.FieldBehavior) bool {
	declared, _ := proto.GetExtension(fd.Options(), annotations.E_FieldBehavior).([]annotations.FieldBehavior)
	return slices.Contains(declared, behavior)
}
