package grpcserver

import (
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// OptionPolicy is the policy that the protos state themselves, by a method option that lists values of an enum. A value's
// role is its name in lower case without what the enum's zero value shows to be the prefix: with CALLER_UNSPECIFIED, CALLER_VAULT
// is "vault". A method without the option, or with the zero value or an unknown one in it, declares nothing.
func OptionPolicy(option protoreflect.ExtensionType) Policy {
	field := option.TypeDescriptor()
	values := field.Enum().Values()
	prefix := strings.TrimSuffix(string(values.ByNumber(0).Name()), "UNSPECIFIED")
	return func(method protoreflect.MethodDescriptor) (roles []string, ok bool) {
		options := method.Options().ProtoReflect()
		if !options.IsValid() || !options.Has(field) {
			return nil, false
		}
		callers := options.Get(field).List()
		for i := range callers.Len() {
			number := callers.Get(i).Enum()
			value := values.ByNumber(number)
			if number == 0 || value == nil {
				return nil, false
			}
			roles = append(roles, strings.ToLower(strings.TrimPrefix(string(value.Name()), prefix)))
		}
		return roles, true
	}
}
