package grpcserver

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/anypb"

	"phasekey.dev/pkg/rpcerr"
)

// accountPrefix begins every resource name.
const accountPrefix = "accounts/"

// accountCheck refuses messages that name a resource outside the identity's accounts, and a first message that names
// none: what is about no account is about all of them.
func accountCheck(id Identity) messageCheck {
	return func(m proto.Message, first bool) error {
		names, err := resourceNames(m.ProtoReflect(), nil)
		if err != nil {
			return err
		}
		for _, name := range names {
			if !slices.Contains(id.Accounts, accountOf(name)) {
				// Neither whether it exists nor which accounts would do.
				return rpcerr.New(codes.PermissionDenied, rpcerr.ReasonAccountNotAllowed,
					"this identity may not name resources of this account")
			}
		}
		if first && len(names) == 0 {
			return rpcerr.New(codes.PermissionDenied, rpcerr.ReasonAccountNotAllowed,
				"this identity must name one of its accounts")
		}
		return nil
	}
}

// accountOf returns the account of a resource name, "" for a name outside of accounts.
func accountOf(name string) string {
	rest, ok := strings.CutPrefix(name, accountPrefix)
	if !ok {
		return ""
	}
	account, _, _ := strings.Cut(rest, "/")
	return account
}

// resourceNames collects every resource name in a message, however deep: strings that carry google.api.resource_reference,
// and the name field of messages that carry google.api.resource. A packed message that cannot be looked into refuses,
// since it may name anything.
func resourceNames(m protoreflect.Message, names []string) ([]string, error) {
	if m.Descriptor().FullName() == anyName {
		inner, err := unpack(m)
		if err != nil {
			return nil, rpcerr.New(codes.PermissionDenied, rpcerr.ReasonAccountNotAllowed,
				"the request carries a message of an unknown type")
		}
		return resourceNames(inner.ProtoReflect(), names)
	}
	own := nameField(m.Descriptor())
	var err error
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		names, err = fieldNames(fd, v, fd.Name() == own || isReference(fd), names)
		return err == nil
	})
	if err != nil {
		return nil, err
	}
	return names, nil
}

// fieldNames collects the names in one populated field; isName says that its strings are names themselves.
func fieldNames(fd protoreflect.FieldDescriptor, v protoreflect.Value, isName bool, names []string) ([]string, error) {
	value := func(fd protoreflect.FieldDescriptor, v protoreflect.Value) error {
		switch {
		case fd.Message() != nil:
			var err error
			names, err = resourceNames(v.Message(), names)
			return err
		case isName && fd.Kind() == protoreflect.StringKind && v.String() != "":
			names = append(names, v.String())
		}
		return nil
	}
	var err error
	switch {
	case fd.IsMap():
		v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
			err = value(fd.MapValue(), v)
			return err == nil
		})
	case fd.IsList():
		for i := 0; i < v.List().Len() && err == nil; i++ {
			err = value(fd, v.List().Get(i))
		}
	default:
		err = value(fd, v)
	}
	if err != nil {
		return nil, fmt.Errorf("field %s: %w", fd.Name(), err)
	}
	return names, nil
}

// anyName is by what a packed message is known, generated or dynamic.
var anyName = (&anypb.Any{}).ProtoReflect().Descriptor().FullName()

// unpack opens a packed message.
func unpack(m protoreflect.Message) (proto.Message, error) {
	fields := m.Descriptor().Fields()
	packed := &anypb.Any{
		TypeUrl: m.Get(fields.ByName("type_url")).String(),
		Value:   m.Get(fields.ByName("value")).Bytes(),
	}
	return packed.UnmarshalNew()
}

// nameField returns which field of a resource is its name, "" for a message that is no resource.
func nameField(d protoreflect.MessageDescriptor) protoreflect.Name {
	o, ok := d.Options().(*descriptorpb.MessageOptions)
	if !ok || !proto.HasExtension(o, annotations.E_Resource) {
		return ""
	}
	r, ok := proto.GetExtension(o, annotations.E_Resource).(*annotations.ResourceDescriptor)
	if !ok || r.GetNameField() == "" {
		return "name"
	}
	return protoreflect.Name(r.GetNameField())
}

// isReference reports whether a field names a resource.
func isReference(fd protoreflect.FieldDescriptor) bool {
	o, ok := fd.Options().(*descriptorpb.FieldOptions)
	return ok && proto.HasExtension(o, annotations.E_ResourceReference)
}
