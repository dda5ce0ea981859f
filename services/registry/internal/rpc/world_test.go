package rpc_test

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	optionsv1 "phasekey.dev/gen/phasekey/options/v1"
	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	typev1 "phasekey.dev/gen/phasekey/type/v1"
	"phasekey.dev/pkg/grpcserver"
	"phasekey.dev/pkg/grpctest"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/registry/internal/integration"
	"phasekey.dev/services/registry/internal/quota"
	"phasekey.dev/services/registry/internal/rpc"
	"phasekey.dev/services/registry/internal/store"
	"phasekey.dev/services/registry/internal/watch"
)

const (
	tenant       = "6f1f7a3e-52a5-4c1b-9d3d-0a8c1f4f0001"
	homeTenant   = "6f1f7a3e-52a5-4c1b-9d3d-0a8c1f4f000f"
	subscription = "0b2f7a3e-52a5-4c1b-9d3d-0a8c1f4f0002"
	requestID    = "9a2f7a3e-52a5-4c1b-9d3d-0a8c1f4f0003"
	holder       = "3f0c0a55-6c1e-4a51-8a31-6a35b7b0a001"
	otherHolder  = "3f0c0a55-6c1e-4a51-8a31-6a35b7b0a002"
	nobody       = "3f0c0a55-6c1e-4a51-8a31-6a35b7b0a003"
)

// rules are every test's.
var rules = integration.Rules{HomeTenants: []string{homeTenant}, Clouds: []string{"public", "china"}}

// clients are one caller's.
type clients struct {
	integrations registryv1.IntegrationServiceClient
	projects     registryv1.ProjectServiceClient
	attachments  registryv1.AttachmentServiceClient
	status       registryv1.StatusServiceClient
	watch        registryv1.WatchServiceClient
}

func clientsOf(conn grpc.ClientConnInterface) clients {
	return clients{
		integrations: registryv1.NewIntegrationServiceClient(conn),
		projects:     registryv1.NewProjectServiceClient(conn),
		attachments:  registryv1.NewAttachmentServiceClient(conn),
		status:       registryv1.NewStatusServiceClient(conn),
		watch:        registryv1.NewWatchServiceClient(conn),
	}
}

// world is a registry behind the real chain, on SQLite, and its callers: limited is a platform that may name acme only.
type world struct {
	store  *store.Store
	server *grpctest.Server

	platform, limited, operator, vault, broker, stranger clients
}

func newWorld(t testing.TB) *world {
	t.Helper()
	return newWorldOf(t, quota.Default())
}

// newWorldOf is newWorld with other quotas.
func newWorldOf(t testing.TB, quotas quota.Config) *world {
	t.Helper()
	return newWorldOn(t, sqldbtest.SQLite(t, store.Migrations()), quotas)
}

// newWorldOn is newWorld with another database, and other quotas.
func newWorldOn(t testing.TB, db *sqldb.DB, quotas quota.Config) *world {
	t.Helper()
	s, err := store.New(t.Context(), db, quotas)
	if err != nil {
		t.Fatal(err)
	}
	hub, err := watch.New(watch.Config{Source: s, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- hub.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	})
	all := []string{grpcserver.AllAccounts}
	server := grpctest.Start(t, grpctest.Config{
		Register: rpc.Register(rpc.Config{Store: s, Trial: s.Trial(), Watcher: hub, Rules: rules}),
		Policy:   grpcserver.OptionPolicy(optionsv1.E_Callers),
		Log:      slog.New(slog.DiscardHandler),
		Identities: []grpcserver.Identity{
			{ID: "spiffe://phasekey.dev/platform", Role: "platform", Accounts: all},
			{ID: "spiffe://phasekey.dev/limited", Role: "platform", Accounts: []string{"acme"}},
			{ID: "spiffe://phasekey.dev/operator", Role: "operator", Accounts: all},
			{ID: "spiffe://phasekey.dev/vault", Role: "vault", Accounts: all},
			{ID: "spiffe://phasekey.dev/broker", Role: "broker", Accounts: all},
		},
	})
	dial := func(who string) clients { return clientsOf(server.Dial(t, "spiffe://phasekey.dev/"+who)) }
	return &world{
		store: s, server: server,
		platform: dial("platform"), limited: dial("limited"), operator: dial("operator"), vault: dial("vault"), broker: dial("broker"),
		stranger: dial("stranger"),
	}
}

func newIntegration() *registryv1.Integration {
	return &registryv1.Integration{DisplayName: "Net", TenantId: tenant, DefaultSubscriptionId: subscription}
}

func (w *world) integration(t testing.TB, account, id string) *registryv1.Integration {
	t.Helper()
	got, err := w.platform.integrations.CreateIntegration(t.Context(), &registryv1.CreateIntegrationRequest{
		Parent: "accounts/" + account, IntegrationId: id, Integration: newIntegration(),
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func (w *world) project(t testing.TB, account, id string) *registryv1.Project {
	t.Helper()
	got, err := w.platform.projects.CreateProject(t.Context(), &registryv1.CreateProjectRequest{
		Parent: "accounts/" + account, ProjectId: id, Project: &registryv1.Project{Kind: registryv1.Project_KIND_STACK},
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func (w *world) attachment(t testing.TB, project, integration string, accesses ...typev1.Access) *registryv1.Attachment {
	t.Helper()
	got, err := w.platform.attachments.CreateAttachment(t.Context(), &registryv1.CreateAttachmentRequest{
		Parent: project, Attachment: &registryv1.Attachment{Integration: integration, Accesses: accesses},
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func (w *world) head(t testing.TB) int64 {
	t.Helper()
	head, err := w.store.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return head.Revision
}

// refusal is what a caller learns of a refused call. Fields are BadRequest's, sorted; metadata is one "key=value"; says is part of the message, or of
// what is said of a field.
type refusal struct {
	code     codes.Code
	reason   string
	fields   []string
	metadata string
	says     string
	// subject is a precondition's.
	subject string
}

func (want refusal) check(t *testing.T, err error) {
	t.Helper()
	st := status.Convert(err)
	if st.Code() != want.code {
		t.Fatalf("got %v, want %v", err, want.code)
	}
	grpctest.CheckRefusal(t, err)
	said := st.Message()
	var fields []string
	for _, d := range st.Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			if d.GetReason() != want.reason || d.GetDomain() != "phasekey" {
				t.Errorf("got reason %s of %s, want %s", d.GetReason(), d.GetDomain(), want.reason)
			}
			if key, value, _ := strings.Cut(want.metadata, "="); d.GetMetadata()[key] != value {
				t.Errorf("got metadata %v, want %s", d.GetMetadata(), want.metadata)
			}
		case *errdetails.BadRequest:
			for _, v := range d.GetFieldViolations() {
				if v.GetDescription() == "" {
					t.Errorf("field %s has no description", v.GetField())
				}
				fields = append(fields, v.GetField())
				said += "; " + v.GetDescription()
			}
		}
	}
	if !strings.Contains(said, want.says) {
		t.Errorf("%q does not say %q", said, want.says)
	}
	if want.code == codes.FailedPrecondition {
		if subject := checkPrecondition(t, st, want.reason); want.subject != "" && subject != want.subject {
			t.Errorf("the precondition is about %q, want %q", subject, want.subject)
		}
	}
	slices.Sort(fields)
	if fields = slices.Compact(fields); !slices.Equal(fields, want.fields) {
		t.Errorf("got fields %q, want %q", fields, want.fields)
	}
}

// checkPrecondition: what the state of things forbids says what to do first.
func checkPrecondition(t *testing.T, st *status.Status, reason string) (subject string) {
	t.Helper()
	for _, d := range st.Details() {
		if d, ok := d.(*errdetails.PreconditionFailure); ok && len(d.GetViolations()) == 1 {
			v := d.GetViolations()[0]
			if v.GetType() != reason || v.GetSubject() == "" || v.GetDescription() == "" || !strings.HasSuffix(st.Message(), "; "+v.GetDescription()) {
				t.Errorf("%q has the precondition %v", st.Message(), v)
			}
			return v.GetSubject()
		}
	}
	t.Errorf("%q has no precondition: %v", st.Message(), st.Details())
	return ""
}

func invalidFields(fields ...string) refusal {
	return refusal{code: codes.InvalidArgument, reason: "INVALID_FIELDS", fields: fields}
}

func notFound(name string) refusal {
	return refusal{code: codes.NotFound, reason: "RESOURCE_NOT_FOUND", metadata: "name=" + name}
}

var (
	etagMismatch  = refusal{code: codes.Aborted, reason: "ETAG_MISMATCH"}
	callerRefused = refusal{code: codes.PermissionDenied, reason: "CALLER_NOT_ALLOWED"}
	otherAccount  = refusal{code: codes.PermissionDenied, reason: "ACCOUNT_NOT_ALLOWED"}
	unknownCaller = refusal{code: codes.Unauthenticated, reason: "IDENTITY_UNKNOWN"}
	badPageToken  = refusal{code: codes.InvalidArgument, reason: "INVALID_PAGE_TOKEN", fields: []string{"page_token"}}
	badCursor     = refusal{code: codes.OutOfRange, reason: "CURSOR_OUT_OF_RANGE"}
)
