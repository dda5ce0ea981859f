package integration_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"phasekey.dev/services/registry/internal/integration"
)

var (
	start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	later = start.Add(time.Hour)
)

const (
	tenant = "6f1f7a3e-52a5-4c1b-9d3d-0a8c1f4f0001"
	home   = "6f1f7a3e-52a5-4c1b-9d3d-0a8c1f4f0002"
)

// TestState_FollowsFromConditions is the whole table of what can be known. Each status letter is T, F, U or - for not reported yet; the conditions
// are ApplicationReady, Consented, CredentialReady.
func TestState_FollowsFromConditions(t *testing.T) {
	for _, tt := range []struct {
		name string
		// reports come one after another.
		reports []string
		deleted bool
		want    integration.State
	}{
		{name: "nothing reported", want: integration.Provisioning},
		{name: "not ready yet", reports: []string{"F--"}, want: integration.Provisioning},
		{name: "readiness unknown", reports: []string{"U--"}, want: integration.Provisioning},
		{name: "ready", reports: []string{"T--"}, want: integration.AwaitingConsent},
		{name: "ready, not consented", reports: []string{"TF-"}, want: integration.AwaitingConsent},
		{name: "ready, consent unknown", reports: []string{"TU-"}, want: integration.AwaitingConsent},
		{name: "consented before it was seen to be ready", reports: []string{"FT-"}, want: integration.Provisioning},
		{name: "consented, credential being proven", reports: []string{"TTF"}, want: integration.Provisioning},
		{name: "consented, credential not reported", reports: []string{"TT-"}, want: integration.Provisioning},
		{name: "consent withdrawn before the credential was proven", reports: []string{"TTF", "TFF"}, want: integration.AwaitingConsent},
		{name: "application gone before consent", reports: []string{"T--", "F--"}, want: integration.Provisioning},
		{name: "all hold", reports: []string{"TTT"}, want: integration.Active},
		{name: "all hold, one after another", reports: []string{"T--", "-T-", "--T"}, want: integration.Active},
		{name: "worked, consent lost", reports: []string{"TTT", "-F-"}, want: integration.Degraded},
		{name: "worked, credential lost", reports: []string{"TTT", "--F"}, want: integration.Degraded},
		{name: "worked, application lost", reports: []string{"TTT", "F--"}, want: integration.Degraded},
		{name: "worked, all lost", reports: []string{"TTT", "FFF"}, want: integration.Degraded},
		{name: "healed", reports: []string{"TTT", "-F-", "-T-"}, want: integration.Active},
		{name: "worked, cannot look now", reports: []string{"TTT", "UUU"}, want: integration.Active},
		{name: "worked, lost, cannot look now", reports: []string{"TTT", "-F-", "-U-"}, want: integration.Degraded},
		{name: "ready, cannot look now", reports: []string{"T--", "U--"}, want: integration.AwaitingConsent},
		{name: "being deleted, nothing reported", deleted: true, want: integration.Deleting},
		{name: "being deleted, all hold", reports: []string{"TTT"}, deleted: true, want: integration.Deleting},
		{name: "being deleted, all lost", reports: []string{"TTT", "FFF"}, deleted: true, want: integration.Deleting},
	} {
		t.Run(tt.name, func(t *testing.T) {
			i := made()
			for _, r := range tt.reports {
				i, _ = i.Observe(later, integration.Report{Conditions: conditions(r)})
			}
			if tt.deleted {
				i = i.Delete(later)
			}
			if got := i.State(); got != tt.want {
				t.Fatalf("state is %s, want %s", got, tt.want)
			}
		})
	}
}

func made() integration.Integration {
	return integration.New(start, integration.Name{Account: "acme", ID: "net"}, "uid", integration.Spec{DisplayName: "net", TenantID: tenant})
}

func conditions(letters string) []integration.Condition {
	types := []integration.ConditionType{integration.ApplicationReady, integration.Consented, integration.CredentialReady}
	var all []integration.Condition
	for i, letter := range letters {
		status, ok := map[rune]integration.ConditionStatus{'T': integration.True, 'F': integration.False, 'U': integration.Unknown}[letter]
		if ok {
			all = append(all, integration.Condition{Type: types[i], Status: status})
		}
	}
	return all
}

func TestObserve_TellsHowMuchIsNew(t *testing.T) {
	report := integration.Report{
		Conditions:             []integration.Condition{{Type: integration.Consented, Status: integration.False, Reason: "AADSTS7000229", Message: "none yet"}},
		ApplicationDisplayName: "phasekey net", ClientID: "ABC", ServicePrincipalObjectID: "DEF",
	}
	first, news := made().Observe(start, report)
	if news != integration.Substance || first.ClientID != "abc" || first.ServicePrincipalObjectID != "def" || first.ApplicationDisplayName != "phasekey net" {
		t.Fatalf("got %+v, news %d", first, news)
	}
	if first.ETag() != made().ETag() || first.UpdateTime != start || first.Generation != 1 {
		t.Fatal("a report changed the wanted state")
	}
	same, news := first.Observe(later, report)
	if diff := cmp.Diff(first, same); news != integration.NoNews || diff != "" {
		t.Fatalf("the same again: news %d\n%s", news, diff)
	}
	nothing, news := first.Observe(later, integration.Report{})
	if diff := cmp.Diff(first, nothing); news != integration.NoNews || diff != "" {
		t.Fatalf("an empty report: news %d\n%s", news, diff)
	}

	report.Conditions[0].Message = "still none"
	reworded, news := first.Observe(later, report)
	if news != integration.Wording || reworded.Conditions[0].Message != "still none" || reworded.Conditions[0].LastTransition != start {
		t.Fatalf("another message: news %d, %+v", news, reworded.Conditions)
	}
	if first.Conditions[0].Message != "none yet" {
		t.Fatal("a report changed what was there before")
	}
	report.Conditions[0].Reason, report.Conditions[0].Message = "AADSTS7000112", "disabled"
	why, news := reworded.Observe(later, report)
	if news != integration.Substance || why.Conditions[0].LastTransition != start {
		t.Fatalf("another reason: news %d, %+v", news, why.Conditions)
	}
	report.Conditions[0].Status = integration.True
	turned, news := why.Observe(later, report)
	if news != integration.Substance || turned.Conditions[0].LastTransition != later {
		t.Fatalf("another status: news %d, %+v", news, turned.Conditions)
	}
	// A new message beside another condition's substance, in either order, is no less than that.
	both := integration.Report{Conditions: []integration.Condition{
		{Type: integration.ApplicationReady, Status: integration.True, Message: "now"},
		{Type: integration.Consented, Status: integration.True, Reason: "AADSTS7000112", Message: "reworded"},
	}}
	if _, news := turned.Observe(later, both); news != integration.Substance {
		t.Fatalf("a message and more: news %d", news)
	}

	more, _ := turned.Observe(later, integration.Report{Conditions: conditions("T-F")})
	var order []integration.ConditionType
	for _, c := range more.Conditions {
		order = append(order, c.Type)
	}
	if !slices.Equal(order, []integration.ConditionType{integration.ApplicationReady, integration.Consented, integration.CredentialReady}) {
		t.Fatalf("conditions are in the order %v", order)
	}
}

func TestSpec_Normal(t *testing.T) {
	got := integration.Spec{
		DisplayName: "n", TenantID: strings.ToUpper(tenant), DefaultSubscriptionID: "ABC",
		AllowedAudiences: []string{"https://b", "https://a", "https://b"}, RotationPeriod: time.Hour + time.Nanosecond,
		DeliveryMaterials: []integration.Material{"CLIENT_SECRET", "ACCESS_TOKEN", "CLIENT_SECRET"},
	}.Normal()
	want := integration.Spec{
		DisplayName: "n", TenantID: tenant, DefaultSubscriptionID: "abc", Cloud: "public", CredentialKind: integration.ClientSecret,
		AllowedAudiences: []string{"https://a", "https://b"}, RotationPeriod: time.Hour,
		DeliveryMaterials: []integration.Material{"ACCESS_TOKEN", "CLIENT_SECRET"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("(-want +got):\n%s", diff)
	}
	if got := (integration.Spec{}).Normal().RotationPeriod; got != 24*time.Hour {
		t.Fatalf("the rotation period is %s unless said otherwise", got)
	}
	if !got.Equal(got.Normal()) {
		t.Fatal("what is normal is not normal again")
	}
	for _, none := range [][]integration.Material{nil, {}, {"ACCESS_TOKEN"}, {"ACCESS_TOKEN", "ACCESS_TOKEN"}} {
		if got := (integration.Spec{DeliveryMaterials: none}).Normal().DeliveryMaterials; got != nil {
			t.Fatalf("%#v became %#v", none, got)
		}
	}
	for _, usual := range [][]integration.Material{nil, {"FEDERATED_TOKEN", "ACCESS_TOKEN"}} {
		if got := (integration.Spec{CredentialKind: "FEDERATED", DeliveryMaterials: usual}).Normal().DeliveryMaterials; got != nil {
			t.Fatalf("of a federated one %#v became %#v", usual, got)
		}
	}
	if got := (integration.Spec{CredentialKind: "FEDERATED", DeliveryMaterials: []integration.Material{"ACCESS_TOKEN"}}).Normal().DeliveryMaterials; len(got) != 1 {
		t.Fatalf("of a federated one tokens alone became %#v", got)
	}
	secret := integration.Spec{DeliveryMaterials: []integration.Material{"CLIENT_SECRET"}}.Normal()
	if len(secret.DeliveryMaterials) != 1 || secret.Equal(integration.Spec{}.Normal()) {
		t.Fatalf("the secret alone became %#v", secret.DeliveryMaterials)
	}
}

func TestRules_Check(t *testing.T) {
	good := integration.Spec{DisplayName: "net", TenantID: tenant, RotationPeriod: time.Hour, Cloud: "public"}
	with := func(change func(*integration.Spec)) integration.Spec {
		spec := good
		change(&spec)
		return spec
	}
	for _, tt := range []struct {
		name        string
		spec        integration.Spec
		development bool
		want        []string
		wantErr     error
	}{
		{name: "good", spec: good},
		{name: "longest", spec: with(func(s *integration.Spec) { s.RotationPeriod = 30 * 24 * time.Hour })},
		{name: "sixty characters", spec: with(func(s *integration.Spec) { s.DisplayName = strings.Repeat("é", 60) })},
		{name: "sixty-one", spec: with(func(s *integration.Spec) { s.DisplayName = strings.Repeat("é", 61) }), want: []string{"display_name"}},
		{name: "only spaces", spec: with(func(s *integration.Spec) { s.DisplayName = "  " }), want: []string{"display_name"}},
		{name: "a name that misleads", spec: with(func(s *integration.Spec) { s.DisplayName = "Micr\u043esoft" }), want: []string{"display_name"}},
		{name: "a name with an address", spec: with(func(s *integration.Spec) { s.DisplayName = "see https://evil.example" }), want: []string{"display_name"}},
		{name: "nothing", spec: integration.Spec{}, want: []string{"display_name", "rotation_period", "tenant_id", "cloud"}},
		{name: "too often", spec: with(func(s *integration.Spec) { s.RotationPeriod = time.Hour - 1 }), want: []string{"rotation_period"}},
		{name: "too seldom", spec: with(func(s *integration.Spec) { s.RotationPeriod = 30*24*time.Hour + 1 }), want: []string{"rotation_period"}},
		{name: "seconds in development", spec: with(func(s *integration.Spec) { s.RotationPeriod = time.Second }), development: true},
		{name: "less in development", spec: with(func(s *integration.Spec) { s.RotationPeriod = time.Second - 1 }), development: true, want: []string{"rotation_period"}},
		{name: "another cloud", spec: with(func(s *integration.Spec) { s.Cloud = "china" })},
		{name: "no such cloud", spec: with(func(s *integration.Spec) { s.Cloud = "pubic" }), want: []string{"cloud"}},
		{name: "federated", spec: with(func(s *integration.Spec) {
			s.CredentialKind, s.DeliveryMaterials = integration.Federated, []integration.Material{integration.MaterialFederatedToken}
		})},
		{name: "the secret of a federated one", spec: with(func(s *integration.Spec) {
			s.CredentialKind, s.DeliveryMaterials = integration.Federated, []integration.Material{integration.MaterialAccessToken, integration.MaterialClientSecret}
		}), want: []string{"delivery_materials"}},
		{name: "the assertions of a secret", spec: with(func(s *integration.Spec) {
			s.CredentialKind, s.DeliveryMaterials = integration.ClientSecret, []integration.Material{integration.MaterialFederatedToken}
		}), want: []string{"delivery_materials"}},
		{name: "attached by itself", spec: with(automatic("team", "autoattach:prod"))},
		{name: "attached by itself, without a subscription", spec: with(func(s *integration.Spec) {
			automatic("autoattach:prod")(s)
			s.DefaultSubscriptionID = ""
		}), want: []string{"default_subscription_id"}},
		{name: "attached by itself to nothing", spec: with(automatic()), want: []string{"auto_attach"}},
		{name: "attached by itself to nothing, with other labels", spec: with(automatic("prod", "Autoattach:prod", "autoattach")), want: []string{"auto_attach"}},
		{name: "a label after a space", spec: with(automatic("autoattach:prod", "autoattach: x")), want: []string{"labels"}},
		{name: "a label after a wide space", spec: with(func(s *integration.Spec) { s.Labels = []string{"autoattach:\u00a0x"} }), want: []string{"labels"}},
		{name: "no label", spec: with(func(s *integration.Spec) { s.Labels = []string{"a", "autoattach:"} }), want: []string{"labels"}},
		{name: "no label, and attached by itself", spec: with(automatic("autoattach:")), want: []string{"labels", "auto_attach"}},
		{name: "the prefix twice", spec: with(automatic("autoattach:autoattach:x"))},
		{name: "home tenant", spec: with(func(s *integration.Spec) { s.TenantID = home }), wantErr: integration.ErrHomeTenant},
	} {
		t.Run(tt.name, func(t *testing.T) {
			violations, err := integration.Rules{HomeTenants: []string{home}, Clouds: []string{"public", "china"}, Development: tt.development}.Check(tt.spec)
			if !errors.Is(err, tt.wantErr) {
				t.Fatalf("got error %v, want %v", err, tt.wantErr)
			}
			var fields []string
			for _, v := range violations {
				fields = append(fields, v.Field)
			}
			if !slices.Equal(fields, tt.want) {
				t.Fatalf("violations of %v, want %v", fields, tt.want)
			}
		})
	}
}

// automatic makes a spec of one that is attached by itself.
func automatic(labels ...string) func(*integration.Spec) {
	return func(s *integration.Spec) { s.AutoAttach, s.DefaultSubscriptionID, s.Labels = true, tenant, labels }
}

// What was made before a rule, and cannot be changed or is not, is in nobody's way.
func TestRules_CheckChange(t *testing.T) {
	old := integration.Spec{DisplayName: "www.acme.example", TenantID: home, RotationPeriod: time.Hour, Cloud: "germany"}
	automatic("autoattach: x")(&old)
	for _, tt := range []struct {
		name   string
		change func(*integration.Spec)
		want   []string
	}{
		{"nothing", func(*integration.Spec) {}, nil},
		{"its name", func(s *integration.Spec) { s.DisplayName = "new" }, nil},
		{"its name, into one that misleads", func(s *integration.Spec) { s.DisplayName = "Micr\u043esoft" }, []string{"display_name"}},
		{"one more label", func(s *integration.Spec) { s.Labels = append(s.Labels, "prod") }, []string{"labels"}},
		{"a good label instead", automatic("autoattach:x"), nil},
		{"the last label gone", automatic(), []string{"auto_attach"}},
		{"the last label gone, and switched off", func(s *integration.Spec) { s.AutoAttach, s.Labels = false, nil }, nil},
		{"switched off, and the label there still", func(s *integration.Spec) { s.AutoAttach = false }, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			next := old
			next.Labels = slices.Clone(old.Labels)
			tt.change(&next)
			var fields []string
			for _, v := range (integration.Rules{HomeTenants: []string{home}, Clouds: []string{"public"}}).CheckChange(old, next) {
				fields = append(fields, v.Field)
			}
			if !slices.Equal(fields, tt.want) {
				t.Fatalf("violations of %v, want %v", fields, tt.want)
			}
		})
	}
}

func TestWant_CountsChanges(t *testing.T) {
	i := made()
	same, changed := i.Want(later, integration.Spec{DisplayName: "net", TenantID: strings.ToUpper(tenant), Cloud: "public"})
	if changed || same.ETag() != i.ETag() || same.UpdateTime != start {
		t.Fatalf("the same wanted again: %+v", same)
	}
	next, changed := i.Want(later, integration.Spec{DisplayName: "other", TenantID: tenant})
	if !changed || next.ETag() == i.ETag() || next.UpdateTime != later || next.CreateTime != start {
		t.Fatalf("another name: %+v", next)
	}
	if deleted := next.Delete(later); !deleted.Deleting() || deleted.ETag() == next.ETag() {
		t.Fatalf("deleted: %+v", deleted)
	}
}
