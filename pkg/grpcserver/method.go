package grpcserver

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
)

// Roles that only the table of foreign services gives.
const (
	// roleAnyone is every caller, known or not.
	roleAnyone = "(anyone)"
	// roleKnown is every identity of the configuration, whatever its role and accounts.
	roleKnown = "(any identity)"
)

// foreign says who may call the services that are not ours and cannot carry our option: all their methods.
var foreign = map[string]string{
	"grpc.health.v1.Health":                    roleAnyone,
	"grpc.reflection.v1.ServerReflection":      roleKnown,
	"grpc.reflection.v1alpha.ServerReflection": roleKnown,
}

// class is what kind of call a method is, for rate limits.
type class string

// The classes of methods.
const (
	classRead   class = "read"
	classWrite  class = "write"
	classStream class = "stream"
)

// method is what the chain knows of one registered method.
type method struct {
	full    string // "/pkg.Service/Method"
	service string
	name    string
	roles   []string
	foreign string // the role from the table of foreign services, "" for our own methods
	class   class
}

// grants reports whether a caller without identity may try.
func (m *method) grants() bool { return slices.Contains(m.roles, RoleGrant) }

// declare finds the callers of every registered method. All methods that have none are named at once.
func declare(services map[string]grpc.ServiceInfo, policy Policy) (map[string]*method, error) {
	methods := map[string]*method{}
	var missing []string
	for _, service := range slices.Sorted(maps.Keys(services)) {
		for _, info := range services[service].Methods {
			m := &method{
				full: "/" + service + "/" + info.Name, service: service, name: info.Name, class: classWrite,
				foreign: foreign[service],
			}
			methods[m.full] = m
			if info.IsClientStream || info.IsServerStream {
				m.class = classStream
			}
			desc, err := descriptor(service, info.Name)
			if err != nil {
				return nil, err
			}
			if o, ok := desc.Options().(*descriptorpb.MethodOptions); ok && m.class == classWrite &&
				o.GetIdempotencyLevel() == descriptorpb.MethodOptions_NO_SIDE_EFFECTS {
				m.class = classRead
			}
			if m.foreign != "" {
				continue
			}
			roles, ok := policy(desc)
			if !ok || len(roles) == 0 || slices.Contains(roles, "") {
				missing = append(missing, strings.TrimPrefix(m.full, "/"))
			}
			m.roles = roles
		}
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("%w: %s", ErrUndeclared, strings.Join(missing, ", "))
	}
	return methods, nil
}

// descriptor finds a registered method's descriptor in what is linked into the binary.
func descriptor(service, name string) (protoreflect.MethodDescriptor, error) {
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service))
	if err != nil {
		return nil, fmt.Errorf("describe %s: %w", service, err)
	}
	sd, ok := d.(protoreflect.ServiceDescriptor)
	if !ok {
		return nil, fmt.Errorf("describe %s: not a service", service)
	}
	m := sd.Methods().ByName(protoreflect.Name(name))
	if m == nil {
		return nil, fmt.Errorf("describe %s: no method %s", service, name)
	}
	return m, nil
}
