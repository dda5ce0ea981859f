package rpc

import (
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	optionsv1 "phasekey.dev/gen/phasekey/options/v1"
)

// Policy reads who may call a method from the proto that declares it. Roles are the enum's words in lower case. A method that
// names nobody, or CALLER_UNSPECIFIED, has no callers.
func Policy(m protoreflect.MethodDescriptor) (roles []string, ok bool) {
	callers, isCallers := proto.GetExtension(m.Options(), optionsv1.E_Callers).([]optionsv1.Caller)
	if !isCallers {
		return nil, false
	}
	for _, c := range callers {
		if c == optionsv1.Caller_CALLER_UNSPECIFIED {
			return nil, false
		}
		roles = append(roles, strings.ToLower(strings.TrimPrefix(c.String(), "CALLER_")))
	}
	return roles, len(roles) > 0
}
