package rpc_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	optionsv1 "phasekey.dev/gen/phasekey/options/v1"
	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	typev1 "phasekey.dev/gen/phasekey/type/v1"
	"phasekey.dev/pkg/grpcserver"
	"phasekey.dev/pkg/grpctest"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/registry/internal/attachment"
	"phasekey.dev/services/registry/internal/integration"
	"phasekey.dev/services/registry/internal/quota"
	"phasekey.dev/services/registry/internal/resource"
	"phasekey.dev/services/registry/internal/rpc"
	"phasekey.dev/services/registry/internal/store"
	"phasekey.dev/services/registry/internal/store/storetest"
)

const (
	// maxScaleRatio is what a call may take with a hundred thousand integrations, as a multiple of what it takes with a thousand.
	maxScaleRatio = 1.5
	// judged is how many calls it takes at least for a median that means something.
	judged = 200
)

// scaled is a registry with so many accounts of so many integrations each, and one caller.
type scaled struct {
	accounts, each int
	store          *store.Store
	clients        clients
	round          int
}

func newScaled(b *testing.B, config sqldb.Config, accounts, thousands int) *scaled {
	b.Helper()
	db, err := sqldb.Open(b.Context(), config, store.Migrations())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := db.Close(); err != nil {
			b.Error(err)
		}
	})
	s, err := store.New(b.Context(), db, quota.Config{Integrations: 1_000_000, Projects: 1_000_000, Attachments: 1_000_000})
	if err != nil {
		b.Fatal(err)
	}
	storetest.Load(b, db, accounts, thousands)
	if config.Driver == sqldb.DriverPostgres {
		// What autovacuum would have done by then; the private server has none.
		sqldbtest.ExecPostgres(b, config, `VACUUM ANALYZE`)
	}
	unlimited := grpcserver.Limit{PerSecond: -1}
	server := grpctest.Start(b, grpctest.Config{
		Register: rpc.Register(rpc.Config{Store: s, Trial: s.Trial(), Rules: rules}),
		Policy:   grpcserver.OptionPolicy(optionsv1.E_Callers),
		Log:      slog.New(slog.DiscardHandler),
		Limits:   grpcserver.Limits{Read: unlimited, Write: unlimited},
		Identities: []grpcserver.Identity{
			{ID: "spiffe://phasekey.dev/platform", Role: "platform", Accounts: []string{grpcserver.AllAccounts}},
			{ID: "spiffe://phasekey.dev/vault", Role: "vault", Accounts: []string{grpcserver.AllAccounts}},
		},
	})
	return &scaled{accounts: accounts, each: thousands * storetest.PerAccount, store: s, clients: clientsOf(server.Dial(b, "spiffe://phasekey.dev/platform"))}
}

// any is some account, and some number in it.
func (s *scaled) any() (account, n int) {
	return rand.N(s.accounts), rand.N(s.each)
}

// scaleCalls are what a registry is asked for all day: through the whole chain, and by its store alone.
var scaleCalls = []struct {
	name string
	call func(ctx context.Context, s *scaled) error
}{
	{"rpc/ListIntegrations", func(ctx context.Context, s *scaled) error {
		account, _ := s.any()
		got, err := s.clients.integrations.ListIntegrations(ctx, &registryv1.ListIntegrationsRequest{Parent: "accounts/" + storetest.Account(account)})
		if err == nil && len(got.GetIntegrations()) != 100 {
			err = fmt.Errorf("a page of %d", len(got.GetIntegrations()))
		}
		return err
	}},
	{"rpc/ListIntegrations/everywhere", func(ctx context.Context, s *scaled) error {
		got, err := s.clients.integrations.ListIntegrations(ctx, &registryv1.ListIntegrationsRequest{Parent: "accounts/-"})
		if err == nil && len(got.GetIntegrations()) != 100 {
			err = fmt.Errorf("a page of %d", len(got.GetIntegrations()))
		}
		return err
	}},
	{"rpc/ListAttachments", func(ctx context.Context, s *scaled) error {
		account, n := s.any()
		_, err := s.clients.attachments.ListAttachments(ctx, &registryv1.ListAttachmentsRequest{Parent: storetest.Project(account, n).String()})
		return err
	}},
	{"rpc/GetIntegration", func(ctx context.Context, s *scaled) error {
		account, n := s.any()
		_, err := s.clients.integrations.GetIntegration(ctx, &registryv1.GetIntegrationRequest{Name: storetest.Integration(account, n).String()})
		return err
	}},
	{"rpc/ResolveAccess/explicit", resolvesBy(typev1.Phase_PHASE_PLANNING)},
	{"rpc/ResolveAccess/automatic", resolvesBy(typev1.Phase_PHASE_APPLYING)},
	{"rpc/ListEffectiveAttachments", func(ctx context.Context, s *scaled) error {
		account, n := s.any()
		_, err := s.clients.attachments.ListEffectiveAttachments(ctx, &registryv1.ListEffectiveAttachmentsRequest{Parent: storetest.Project(account, n).String()})
		return err
	}},
	{"rpc/UpdateIntegration", func(ctx context.Context, s *scaled) error {
		account, n := s.any()
		s.round++
		_, err := s.clients.integrations.UpdateIntegration(ctx, &registryv1.UpdateIntegrationRequest{
			Integration: &registryv1.Integration{Name: storetest.Integration(account, n).String(), DisplayName: fmt.Sprint("Round ", s.round)},
			UpdateMask:  &fieldmaskpb.FieldMask{Paths: []string{"display_name"}},
		})
		return err
	}},
	{"store/Integrations", func(ctx context.Context, s *scaled) error {
		account, _ := s.any()
		_, _, _, err := s.store.Integrations(ctx, resource.Page{Parent: "accounts/" + storetest.Account(account), Size: 100}, nil)
		return err
	}},
	{"store/Integration", func(ctx context.Context, s *scaled) error {
		account, n := s.any()
		_, err := s.store.Integration(ctx, storetest.Integration(account, n))
		return err
	}},
	{"store/ResolveAccess/explicit", func(ctx context.Context, s *scaled) error {
		account, n := s.any()
		_, _, err := s.store.ResolveAccess(ctx, storetest.Project(account, n), attachment.Read)
		return err
	}},
	{"store/ResolveAccess/automatic", func(ctx context.Context, s *scaled) error {
		account, n := s.any()
		_, _, err := s.store.ResolveAccess(ctx, storetest.Project(account, n), attachment.Write)
		return err
	}},
	{"store/UpdateIntegration", func(ctx context.Context, s *scaled) error {
		account, n := s.any()
		s.round++
		_, err := s.store.UpdateIntegration(ctx, time.Now(), storetest.Integration(account, n), "", func(i integration.Integration) (integration.Spec, error) {
			i.Spec.DisplayName = fmt.Sprint("Round ", s.round)
			return i.Spec, nil
		}, nil)
		return err
	}},
}

// accountCalls are those that cost as much as the account has: other accounts must not cost anything.
var accountCalls = []struct {
	name string
	call func(ctx context.Context, s *scaled) error
}{
	// One in twenty, and none: to find them all of the account's integrations are read.
	{"rpc/ListIntegrations/by label", listsBy(`labels:"team:7"`, storetest.PerAccount/20)},
	{"rpc/ListIntegrations/by state", listsBy(`state = ACTIVE`, 0)},
	{"rpc/ListIntegrations/in another order", func(ctx context.Context, s *scaled) error {
		account, _ := s.any()
		_, err := s.clients.integrations.ListIntegrations(ctx, &registryv1.ListIntegrationsRequest{Parent: "accounts/" + storetest.Account(account), OrderBy: "create_time desc"})
		return err
	}},
	// Those that there are are counted, for the quota.
	{"rpc/CreateIntegration", func(ctx context.Context, s *scaled) error {
		account, _ := s.any()
		s.round++
		_, err := s.clients.integrations.CreateIntegration(ctx, &registryv1.CreateIntegrationRequest{
			Parent: "accounts/" + storetest.Account(account), IntegrationId: fmt.Sprint("new-", s.round), Integration: newIntegration(), RequestId: uuid.NewString(),
		})
		return err
	}},
}

// listsBy lists an account's integrations that pass the filter, which are so many.
func listsBy(filter string, many int) func(ctx context.Context, s *scaled) error {
	return func(ctx context.Context, s *scaled) error {
		account, _ := s.any()
		got, err := s.clients.integrations.ListIntegrations(ctx, &registryv1.ListIntegrationsRequest{Parent: "accounts/" + storetest.Account(account), Filter: filter})
		if err == nil && (len(got.GetIntegrations()) != many || got.GetNextPageToken() != "") {
			err = fmt.Errorf("a page of %d, and then %q", len(got.GetIntegrations()), got.GetNextPageToken())
		}
		return err
	}
}

func resolvesBy(phase typev1.Phase) func(ctx context.Context, s *scaled) error {
	return func(ctx context.Context, s *scaled) error {
		account, n := s.any()
		_, err := s.clients.attachments.ResolveAccess(ctx, &registryv1.ResolveAccessRequest{Project: storetest.Project(account, n).String(), Phase: phase})
		return err
	}
}

// BenchmarkScale compares, call by call and in turns, a registry of a thousand integrations with those of a hundred thousand, in a hundred accounts and in one,
// and as many projects and attachments. It fails when the median of a call grows by more than half.
func BenchmarkScale(b *testing.B) {
	for _, engine := range []struct {
		name   string
		config func(b *testing.B) sqldb.Config
	}{
		{"sqlite", func(b *testing.B) sqldb.Config {
			b.Helper()
			return sqldbtest.SQLiteConfig(b)
		}},
		{"postgres", func(b *testing.B) sqldb.Config {
			b.Helper()
			return sqldbtest.MigratedPostgresConfig(b, store.Migrations())
		}},
	} {
		b.Run(engine.name, func(b *testing.B) {
			small := newScaled(b, engine.config(b), 1, 1)
			for _, shape := range []struct {
				name                string
				accounts, thousands int
			}{
				{"100 accounts", 100, 1},
				{"1 account", 1, 100},
			} {
				b.Run(shape.name, func(b *testing.B) {
					large := newScaled(b, engine.config(b), shape.accounts, shape.thousands)
					calls := scaleCalls
					if shape.accounts > 1 {
						calls = append(slices.Clone(calls), accountCalls...)
					}
					for _, tt := range calls {
						b.Run(tt.name, func(b *testing.B) { compareScales(b, small, large, tt.call) })
					}
				})
			}
		})
	}
}

func compareScales(b *testing.B, small, large *scaled, call func(ctx context.Context, s *scaled) error) {
	b.Helper()
	var took [2][]time.Duration
	for range max(b.N, judged) {
		for i, s := range []*scaled{small, large} {
			begun := time.Now()
			err := call(b.Context(), s)
			took[i] = append(took[i], time.Since(begun))
			if err != nil {
				b.Fatal(err)
			}
		}
	}
	of1000, of100000 := median(took[0]), median(took[1])
	ratio := float64(of100000) / float64(of1000)
	b.ReportMetric(0, "ns/op") // of both together: says nothing
	b.ReportMetric(float64(of1000.Nanoseconds())/1000, "p50-µs-of-1000")
	b.ReportMetric(float64(of100000.Nanoseconds())/1000, "p50-µs-of-100000")
	b.ReportMetric(ratio, "p50-ratio")
	if ratio > maxScaleRatio {
		b.Errorf("with 100,000 integrations the median is %.2f times that with 1,000, more than %.1f", ratio, maxScaleRatio)
	}
}

func median(took []time.Duration) time.Duration {
	slices.Sort(took)
	return took[len(took)/2]
}
