package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	brokerv1 "phasekey.dev/gen/phasekey/broker/v1"
	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	typev1 "phasekey.dev/gen/phasekey/type/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/pkg/devca"
)

const (
	account     = "accounts/acme"
	project     = account + "/projects/network"
	integration = account + "/integrations/network"
	attachment  = project + "/attachments/network"
	instance    = "instance-1"
)

// visit is one method's valid call in a sequence that leads through all of them.
type visit struct {
	method string
	role   string
	// request is made when its turn has come.
	request func() proto.Message
	// until tells of a streaming method's messages whether it has said enough; nil takes the first.
	until func(proto.Message) bool
}

// tour has what the visits learn from each other.
type tour struct {
	d       *dev
	world   world
	uid     string
	cursor  string
	session *brokerv1.ConsentSession
	grant   *vaultv1.Grant
	lease   string
	// rotation and batch are names.
	rotation, batch string
	consents        *http.Client
}

// world is the folder's world.json.
type world struct {
	CustomerTenant string `json:"customer_tenant"`
	Administrator  string `json:"administrator"`
	Subscription   string `json:"subscription"`
}

func worldOf(t *testing.T, d *dev) (w world) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(d.dir, "world.json"))
	if err == nil {
		err = json.Unmarshal(text, &w)
	}
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// httpsClient trusts the folder's CA.
func httpsClient(t *testing.T, d *dev) *http.Client {
	t.Helper()
	return &http.Client{
		Timeout:   10 * time.Second,
		Transport: &http.Transport{TLSClientConfig: clientTLS(t, "", "", filepath.Join(d.dir, "tls", "ca.pem"))},
	}
}

func TestEveryMethod_TakesTheValidAndNamesTheBroken(t *testing.T) {
	t.Parallel()
	d := start(t, t.TempDir())
	tour := &tour{d: d, consents: httpsClient(t, d), world: worldOf(t, d)}
	listeners := map[string]string{"registry": d.at.Registry, "broker": d.at.Broker, "vault": d.at.Vault}
	at := map[string]string{} // method → address
	for _, address := range listeners {
		for _, method := range reflectMethods(t, dial(t, d, address, "platform")) {
			at[method] = address
		}
	}
	// Somebody whom our own CA certifies and no configuration names.
	ca, err := devca.Open(filepath.Join(d.dir, "tls"), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ca.Issue(time.Now(), "stranger", devca.Leaf{ID: "spiffe://phasekey.dev/stranger"}); err != nil {
		t.Fatal(err)
	}
	visits := tour.visits(t)
	visited := map[string]bool{}
	for _, v := range visits {
		visited[v.method] = true
	}
	if all, seen := slices.Sorted(maps.Keys(at)), slices.Sorted(maps.Keys(visited)); !slices.Equal(all, seen) {
		t.Fatalf("reflection shows %v, and the tour visits %v", all, seen)
	}
	broken := 0
	for _, v := range visits {
		request := v.request()
		conn := dial(t, d, at[v.method], v.role)
		for _, b := range breakings(request) {
			broken++
			_, err := tour.call(t.Context(), conn, v.method, b.message, nil)
			expectInvalid(t, v.method, b.field, err)
		}
		answer, err := tour.call(t.Context(), conn, v.method, request, v.until)
		if err != nil {
			t.Fatalf("%s as %s: %v", v.method, v.role, err)
		}
		tour.learn(answer)
		// Whoever else has a certificate of ours may not.
		_, err = tour.call(t.Context(), dial(t, d, at[v.method], "stranger"), v.method, request, nil)
		if !strings.Contains(v.method, ".CredentialService/") && status.Code(err) != codes.Unauthenticated && status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s as a stranger: %v", v.method, err)
		}
	}
	t.Logf("%d methods, each with a valid request and a stranger; %d broken requests", len(visits), broken)
	if broken < 3*len(visits) {
		t.Errorf("only %d broken requests for %d methods", broken, len(visits))
	}
}

func (c *tour) visits(t *testing.T) []visit {
	const (
		registry = "/phasekey.registry.v1."
		broker   = "/phasekey.broker.v1."
		vault    = "/phasekey.vault.v1."
	)
	mask := func(paths ...string) *fieldmaskpb.FieldMask { return &fieldmaskpb.FieldMask{Paths: paths} }
	is := func(m proto.Message) func() proto.Message { return func() proto.Message { return m } }
	return []visit{
		{registry + "ProjectService/CreateProject", "platform", is(&registryv1.CreateProjectRequest{Parent: account, ProjectId: "network", Project: &registryv1.Project{Kind: registryv1.Project_KIND_STACK}}), nil},
		{registry + "ProjectService/GetProject", "platform", is(&registryv1.GetProjectRequest{Name: project}), nil},
		{registry + "ProjectService/ListProjects", "operator", is(&registryv1.ListProjectsRequest{Parent: account}), nil},
		{registry + "ProjectService/BatchGetProjects", "operator", is(&registryv1.BatchGetProjectsRequest{Parent: account, Names: []string{project}}), nil},
		{registry + "ProjectService/UpdateProject", "platform", is(&registryv1.UpdateProjectRequest{Project: &registryv1.Project{Name: project, Kind: registryv1.Project_KIND_STACK, DisplayName: "Network"}, UpdateMask: mask("display_name")}), nil},
		{registry + "IntegrationService/CreateIntegration", "platform", is(&registryv1.CreateIntegrationRequest{Parent: account, IntegrationId: "network", Integration: &registryv1.Integration{DisplayName: "Network", TenantId: c.world.CustomerTenant, DefaultSubscriptionId: c.world.Subscription}}), nil},
		{registry + "IntegrationService/GetIntegration", "broker", is(&registryv1.GetIntegrationRequest{Name: integration}), nil},
		{registry + "IntegrationService/ListIntegrations", "vault", is(&registryv1.ListIntegrationsRequest{Parent: "accounts/-"}), nil},
		{registry + "IntegrationService/BatchGetIntegrations", "platform", is(&registryv1.BatchGetIntegrationsRequest{Parent: account, Names: []string{integration}}), nil},
		{registry + "IntegrationService/UpdateIntegration", "platform", is(&registryv1.UpdateIntegrationRequest{Integration: &registryv1.Integration{Name: integration, DisplayName: "Network team", TenantId: c.world.CustomerTenant}, UpdateMask: mask("display_name")}), nil},
		{registry + "AttachmentService/CreateAttachment", "platform", is(&registryv1.CreateAttachmentRequest{Parent: project, Attachment: &registryv1.Attachment{Integration: integration}}), nil},
		{registry + "AttachmentService/GetAttachment", "platform", is(&registryv1.GetAttachmentRequest{Name: attachment}), nil},
		{registry + "AttachmentService/ListAttachments", "vault", is(&registryv1.ListAttachmentsRequest{Parent: "accounts/-/projects/-"}), nil},
		{registry + "AttachmentService/BatchGetAttachments", "vault", is(&registryv1.BatchGetAttachmentsRequest{Parent: project, Names: []string{attachment}}), nil},
		{registry + "AttachmentService/UpdateAttachment", "platform", is(&registryv1.UpdateAttachmentRequest{Attachment: &registryv1.Attachment{Name: attachment, Integration: integration, SubscriptionId: c.world.Subscription}, UpdateMask: mask("subscription_id")}), nil},
		{registry + "AttachmentService/ListEffectiveAttachments", "platform", is(&registryv1.ListEffectiveAttachmentsRequest{Parent: project}), nil},
		{registry + "AttachmentService/ResolveAccess", "vault", is(&registryv1.ResolveAccessRequest{Project: project, Phase: typev1.Phase_PHASE_PLANNING}), nil},
		{registry + "WatchService/Watch", "vault", func() proto.Message { return &registryv1.WatchRequest{Cursor: c.cursor} }, nil},
		{registry + "StatusService/ReportConditions", "vault", func() proto.Message {
			// As a master that took over just now: the vault's own is fenced when it reports next, and takes its shard anew.
			return &registryv1.ReportConditionsRequest{IntegrationUid: c.uid, Mastership: &registryv1.Mastership{Shard: 999, Epoch: time.Now().UnixMicro(), Holder: c.world.Subscription}}
		}, nil},
		{broker + "ConsentService/CreateConsentSession", "platform", is(&brokerv1.CreateConsentSessionRequest{Parent: account, ConsentSession: &brokerv1.ConsentSession{Integration: integration}}), nil},
		{broker + "ConsentService/GetConsentSession", "operator", func() proto.Message { return &brokerv1.GetConsentSessionRequest{Name: c.session.GetName()} }, nil},
		{broker + "ConsentService/WatchConsentSession", "platform", func() proto.Message {
			return &brokerv1.WatchConsentSessionRequest{Name: c.session.GetName()}
		}, func(m proto.Message) bool { return c.consent(t, m) }},
		{broker + "ConsentService/VerifyConsent", "platform", is(&brokerv1.VerifyConsentRequest{Integration: integration}), nil},
		{broker + "ConsentService/CancelConsentSession", "operator", func() proto.Message { return &brokerv1.CancelConsentSessionRequest{Name: c.session.GetName()} }, nil},
		{vault + "AccessService/ProbeConsent", "broker", is(&vaultv1.ProbeConsentRequest{Integration: integration}), nil},
		{vault + "AccessService/CheckPermissions", "operator", is(&vaultv1.CheckPermissionsRequest{Integration: integration}), nil},
		{vault + "GrantService/CreateGrant", "platform", is(&vaultv1.CreateGrantRequest{Parent: account, Grant: &vaultv1.Grant{Project: project, Phase: typev1.Phase_PHASE_APPLYING, Run: "run-1"}}), nil},
		{vault + "GrantService/GetGrant", "operator", func() proto.Message { return &vaultv1.GetGrantRequest{Name: c.grant.GetName()} }, nil},
		{vault + "GrantService/ListGrants", "platform", is(&vaultv1.ListGrantsRequest{Parent: account}), nil},
		{vault + "GrantService/ExtendGrant", "platform", func() proto.Message {
			return &vaultv1.ExtendGrantRequest{Name: c.grant.GetName(), ExpireTime: timestamppb.New(time.Now().Add(2 * time.Hour))}
		}, nil},
		{vault + "RotationService/ListCredentialVersions", "operator", is(&vaultv1.ListCredentialVersionsRequest{Parent: integration}), nil},
		{vault + "RotationService/PauseRotation", "platform", is(&vaultv1.PauseRotationRequest{Scope: account, Reason: "A tour", Ttl: durationpb.New(time.Minute)}), nil},
		{vault + "RotationService/ListRotationPauses", "operator", is(&vaultv1.ListRotationPausesRequest{Parent: "accounts/-"}), nil},
		{vault + "RotationService/ResumeRotation", "platform", is(&vaultv1.ResumeRotationRequest{Scope: account}), nil},
		{vault + "RotationService/RotateIntegration", "platform", is(&vaultv1.RotateIntegrationRequest{Name: integration, Reason: vaultv1.Rotation_REASON_SCHEDULED}), nil},
		{vault + "RotationService/GetRotation", "operator", func() proto.Message { return &vaultv1.GetRotationRequest{Name: c.rotation} }, nil},
		{vault + "RotationService/ListRotations", "platform", is(&vaultv1.ListRotationsRequest{Parent: integration}), nil},
		{vault + "RotationService/RotateAllIntegrations", "operator", is(&vaultv1.RotateAllIntegrationsRequest{Parent: account, Reason: vaultv1.Rotation_REASON_SCHEDULED}), nil},
		{vault + "RotationService/GetRotationBatch", "operator", func() proto.Message { return &vaultv1.GetRotationBatchRequest{Name: c.batch} }, nil},
		{vault + "RotationService/RotateSigningKeys", "operator", is(&vaultv1.RotateSigningKeysRequest{Reason: vaultv1.Rotation_REASON_SCHEDULED}), nil},
		{vault + "RotationService/ListSigningKeys", "operator", is(&vaultv1.ListSigningKeysRequest{}), nil},
		{vault + "RotationService/ListRotationBatches", "operator", is(&vaultv1.ListRotationBatchesRequest{Parent: account}), nil},
		{vault + "CredentialService/StreamCredentials", "runner", is(&vaultv1.StreamCredentialsRequest{InstanceId: instance}), nil},
		{vault + "LeaseService/ListLeases", "operator", func() proto.Message { return &vaultv1.ListLeasesRequest{Parent: c.grant.GetName()} }, nil},
		{vault + "LeaseService/GetLease", "platform", func() proto.Message { return &vaultv1.GetLeaseRequest{Name: c.lease} }, nil},
		{vault + "CredentialService/FetchCredential", "runner", is(&vaultv1.FetchCredentialRequest{InstanceId: instance}), nil},
		{vault + "CredentialService/AcknowledgeCredential", "runner", is(&vaultv1.AcknowledgeCredentialRequest{InstanceId: instance, Generation: 1}), nil},
		{vault + "CredentialService/CloseLease", "runner", is(&vaultv1.CloseLeaseRequest{InstanceId: instance}), nil},
		{vault + "LeaseService/RevokeLease", "operator", func() proto.Message { return &vaultv1.RevokeLeaseRequest{Name: c.lease} }, nil},
		{vault + "AccountService/GetAccount", "platform", is(&vaultv1.GetAccountRequest{Name: account}), nil},
		{vault + "AccountService/FreezeAccount", "operator", is(&vaultv1.FreezeAccountRequest{Name: account, Reason: "a tour"}), nil},
		{vault + "AccountService/UnfreezeAccount", "operator", is(&vaultv1.UnfreezeAccountRequest{Name: account}), nil},
		{vault + "AuditService/ListAuditEvents", "platform", is(&vaultv1.ListAuditEventsRequest{Parent: account, Filter: `kind = CredentialDelivered`}), nil},
		{vault + "AuditService/TailAuditEvents", "platform", is(&vaultv1.TailAuditEventsRequest{Parent: account, Filter: `kind = CredentialDelivered`}), nil},
		{vault + "AuditService/ExportAuditEvents", "operator", is(&vaultv1.ExportAuditEventsRequest{}), nil},
		{vault + "AuditService/ListAuditCheckpoints", "operator", is(&vaultv1.ListAuditCheckpointsRequest{}), nil},
		{vault + "GrantService/RevokeGrants", "platform", is(&vaultv1.RevokeGrantsRequest{Parent: account, Scope: &vaultv1.RevokeGrantsRequest_Run{Run: "run-1"}}), nil},
		{vault + "GrantService/RevokeGrant", "operator", func() proto.Message { return &vaultv1.RevokeGrantRequest{Name: c.grant.GetName()} }, nil},
		{registry + "AttachmentService/DeleteAttachment", "platform", is(&registryv1.DeleteAttachmentRequest{Name: attachment}), nil},
		{registry + "IntegrationService/DeleteIntegration", "platform", is(&registryv1.DeleteIntegrationRequest{Name: integration}), nil},
		{registry + "ProjectService/DeleteProject", "platform", is(&registryv1.DeleteProjectRequest{Name: project}), nil},
	}
}

func (c *tour) learn(answer proto.Message) {
	switch m := answer.(type) {
	case *registryv1.Integration:
		c.uid = m.GetUid()
	case *registryv1.ListIntegrationsResponse:
		c.cursor = m.GetCursor()
	case *brokerv1.ConsentSession:
		c.session = m
	case *vaultv1.StreamCredentialsResponse:
		c.lease = c.grant.GetName() + "/leases/" + m.GetCredential().GetLease()
	case *vaultv1.RotateIntegrationResponse:
		c.rotation = m.GetRotation().GetName()
	case *vaultv1.RotateAllIntegrationsResponse:
		c.batch = m.GetRotationBatch().GetName()
	case *vaultv1.Grant:
		if m.GetToken() != "" {
			c.grant = m
		}
	}
}

// consent lets the administrator consent as soon as the session says so, and tells whether that is proven.
func (c *tour) consent(t *testing.T, m proto.Message) bool {
	session := m.(*brokerv1.WatchConsentSessionResponse).GetConsentSession()
	if session.GetState() == brokerv1.ConsentSession_STATE_AWAITING_CONSENT && session.GetLastRefusal() == "" {
		// Without the session's page: what the broker believes is proof, not a browser that comes back.
		wanted, err := registryv1.NewIntegrationServiceClient(dial(t, c.d, c.d.at.Registry, "platform")).
			GetIntegration(t.Context(), &registryv1.GetIntegrationRequest{Name: integration})
		if err != nil {
			t.Fatal(err)
		}
		body, err := json.Marshal(map[string]any{
			"tenant": c.world.CustomerTenant, "clientId": wanted.GetClientId(), "userName": c.world.Administrator,
			"redirectUri": "https://" + c.d.at.BrokerHTTPS + "/consent/callback",
		})
		if err != nil {
			t.Fatal(err)
		}
		for {
			response, err := c.consents.Post(c.d.at.SimulatorAdmin+"/consents", "application/json", bytes.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			text, err := io.ReadAll(response.Body)
			if err != nil || response.Body.Close() != nil {
				t.Fatal(err)
			}
			if response.StatusCode == http.StatusOK {
				break
			}
			// A replica that does not know the application yet.
			if !bytes.Contains(text, []byte("700016")) {
				t.Fatalf("consent: %s", text)
			}
			select {
			case <-t.Context().Done():
				t.Fatal(t.Context().Err())
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
	return session.GetState() == brokerv1.ConsentSession_STATE_COMPLETED
}

// call makes a call of any method. What is UNAVAILABLE because something has not happened yet is tried again for a while.
func (c *tour) call(ctx context.Context, conn *grpc.ClientConn, method string, request proto.Message, until func(proto.Message) bool) (proto.Message, error) {
	ctx, cancel := context.WithTimeout(ctx, 40*time.Second)
	defer cancel()
	if c.grant != nil && strings.Contains(method, ".CredentialService/") {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+c.grant.GetToken())
	}
	descriptor := describe(method)
	for {
		answer, err := once(ctx, conn, descriptor, method, request, until)
		if status.Code(err) != codes.Unavailable || ctx.Err() != nil {
			return answer, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func once(ctx context.Context, conn *grpc.ClientConn, descriptor protoreflect.MethodDescriptor, method string, request proto.Message, until func(proto.Message) bool) (proto.Message, error) {
	kind, err := protoregistry.GlobalTypes.FindMessageByName(descriptor.Output().FullName())
	if err != nil {
		return nil, err
	}
	answer := kind.New().Interface()
	if !descriptor.IsStreamingServer() {
		return answer, conn.Invoke(ctx, method, request, answer)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method)
	if err != nil {
		return nil, err
	}
	if err := stream.SendMsg(request); err != nil {
		return nil, err
	}
	if err := stream.CloseSend(); err != nil {
		return nil, err
	}
	for {
		if err := stream.RecvMsg(answer); err != nil {
			return nil, err
		}
		if until == nil || until(answer) {
			return answer, nil
		}
	}
}

func describe(method string) protoreflect.MethodDescriptor {
	name := strings.ReplaceAll(strings.TrimPrefix(method, "/"), "/", ".")
	found, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(name))
	if err != nil {
		panic(err) //nolint:forbidigo // the name is a literal of this test
	}
	return found.(protoreflect.MethodDescriptor)
}

// breaking is a request with one field spoilt.
type breaking struct {
	field   string
	message proto.Message
}

// breakings are a valid request with each field, in turn, as it must not be.
func breakings(valid proto.Message) []breaking {
	var out []breaking
	spoil := func(path string, change func(protoreflect.Message)) {
		m := proto.Clone(valid)
		change(m.ProtoReflect())
		out = append(out, breaking{path, m})
	}
	var walk func(at []protoreflect.FieldDescriptor, in protoreflect.MessageDescriptor)
	walk = func(at []protoreflect.FieldDescriptor, in protoreflect.MessageDescriptor) {
		for i := range in.Fields().Len() {
			field := in.Fields().Get(i)
			behavior := behaviorOf(field)
			if behavior[annotations.FieldBehavior_OUTPUT_ONLY] {
				continue
			}
			path := append(slices.Clone(at), field)
			set := func(v func() protoreflect.Value) {
				spoil(pathOf(path), func(m protoreflect.Message) {
					for _, f := range at {
						m = m.Mutable(f).Message()
					}
					if field.IsList() {
						m.Mutable(field).List().Append(v())
						return
					}
					m.Set(field, v())
				})
			}
			switch {
			case field.Kind() == protoreflect.StringKind:
				set(func() protoreflect.Value { return protoreflect.ValueOfString("!\x01" + strings.Repeat("x", 5000)) })
			case field.Kind() == protoreflect.EnumKind:
				set(func() protoreflect.Value { return protoreflect.ValueOfEnum(99) })
			case field.Kind() == protoreflect.Int32Kind:
				set(func() protoreflect.Value { return protoreflect.ValueOfInt32(-1) })
			case field.Kind() == protoreflect.Int64Kind:
				set(func() protoreflect.Value { return protoreflect.ValueOfInt64(-1) })
			case field.Message() != nil && !field.IsList():
				switch field.Message().FullName() {
				case "google.protobuf.Duration":
					set(func() protoreflect.Value {
						return protoreflect.ValueOfMessage(durationpb.New(-time.Second).ProtoReflect())
					})
				case "google.protobuf.FieldMask":
					set(func() protoreflect.Value {
						return protoreflect.ValueOfMessage((&fieldmaskpb.FieldMask{Paths: []string{"no_such_field"}}).ProtoReflect())
					})
				case "google.protobuf.Timestamp":
					set(func() protoreflect.Value {
						return protoreflect.ValueOfMessage(timestamppb.New(time.Now().Add(10 * 365 * 24 * time.Hour)).ProtoReflect())
					})
				default:
					if behavior[annotations.FieldBehavior_REQUIRED] && len(at) == 0 {
						spoil(pathOf(path), func(m protoreflect.Message) { m.Clear(field) })
					}
					walk(path, field.Message())
				}
			}
		}
	}
	walk(nil, valid.ProtoReflect().Descriptor())
	return out
}

func behaviorOf(field protoreflect.FieldDescriptor) map[annotations.FieldBehavior]bool {
	out := map[annotations.FieldBehavior]bool{}
	behaviors, _ := proto.GetExtension(field.Options(), annotations.E_FieldBehavior).([]annotations.FieldBehavior)
	for _, b := range behaviors {
		out[b] = true
	}
	return out
}

func pathOf(path []protoreflect.FieldDescriptor) string {
	names := make([]string, len(path))
	for i, f := range path {
		names[i] = string(f.Name())
	}
	return strings.Join(names, ".")
}

// expectInvalid wants INVALID_ARGUMENT with the field among its violations; a page token's or a cursor's refusal has a reason of
// its own.
func expectInvalid(t *testing.T, method, field string, err error) {
	t.Helper()
	refused := status.Convert(err)
	var named []string
	reason := ""
	for _, detail := range refused.Details() {
		switch d := detail.(type) {
		case *errdetails.BadRequest:
			for _, v := range d.GetFieldViolations() {
				named = append(named, v.GetField())
			}
		case *errdetails.ErrorInfo:
			reason = d.GetReason()
		}
	}
	matches := slices.ContainsFunc(named, func(n string) bool { return strings.HasPrefix(n, field) })
	if refused.Code() != codes.InvalidArgument || reason == "" || !matches {
		t.Errorf("%s with a broken %s: %v, reason %q, fields %v", method, field, err, reason, named)
	}
}

// reflectMethods are all methods that a server shows, but for gRPC's own services.
func reflectMethods(t *testing.T, conn *grpc.ClientConn) []string {
	t.Helper()
	stream, err := reflectionv1.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	answer, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, s := range answer.GetListServicesResponse().GetService() {
		if strings.HasPrefix(s.GetName(), "grpc.") {
			continue
		}
		found, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(s.GetName()))
		if err != nil {
			t.Fatal(err)
		}
		methods := found.(protoreflect.ServiceDescriptor).Methods()
		for i := range methods.Len() {
			out = append(out, fmt.Sprintf("/%s/%s", s.GetName(), methods.Get(i).Name()))
		}
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	return out
}
