package operator

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/descriptorpb"

	errorv1 "phasekey.dev/gen/phasekey/error/v1"
	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	typev1 "phasekey.dev/gen/phasekey/type/v1"
	"phasekey.dev/pkg/rpcerr"
)

func TestAdvice_ThereIsSomeForEachReason(t *testing.T) {
	given := 0
	for n, name := range errorv1.ErrorReason_name {
		if n == 0 || deprecated(errorv1.ErrorReason(n)) {
			continue
		}
		given++
		if advice[rpcerr.Word(errorv1.ErrorReason(n))] == "" {
			t.Errorf("what to do about %s is not said", name)
		}
	}
	if have := len(advice); given != have {
		t.Errorf("%d reasons, and advice about %d", given, have)
	}
}

// deprecated reports whether a reason is never given any more.
func deprecated(r errorv1.ErrorReason) bool {
	options, ok := r.Descriptor().Values().ByNumber(r.Number()).Options().(*descriptorpb.EnumValueOptions)
	return ok && options.GetDeprecated()
}

func TestExplain_SaysWhatToDo(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want string
	}{
		{rpcerr.New(codes.NotFound, "RESOURCE_NOT_FOUND", "it does not exist"), "check the name and the account"},
		{status.Error(codes.Unavailable, "connection refused"), "check the context's address"},
		{status.Error(codes.Unimplemented, "no such method"), "older release"},
		{status.FromContextError(context.Canceled).Err(), "interrupted"},
		{rpcerr.New(codes.Unavailable, "CONSENT_MISSING", "it is not known there"), "it is not known there (Unavailable, CONSENT_MISSING); the customer's administrators must consent"},
		{errors.New("nothing was done"), "nothing was done"},
	} {
		if got := explain(tt.err); !strings.Contains(got.Error(), tt.want) || strings.Contains(got.Error(), "\n") {
			t.Errorf("%v: %v", tt.err, got)
		}
	}
	if explain(nil) != nil {
		t.Error("nothing is explained")
	}
}

func TestParse_TakesTheWordsItOffers(t *testing.T) {
	for _, choice := range choices[typev1.Phase]() {
		phase, err := parse[typev1.Phase](choice)
		if err != nil || !strings.EqualFold(word(phase), choice) {
			t.Errorf("%s is %v, %v", choice, phase, err)
		}
	}
	for _, text := range []string{"", "unspecified", "PHASE_PLANNING", "plan"} {
		if phase, err := parse[typev1.Phase](text); err == nil {
			t.Errorf("%q is %v", text, phase)
		}
	}
}

func TestTable_KeepsToItsLinesAndColumns(t *testing.T) {
	var out bytes.Buffer
	p := &printer{out: &out}
	evil := &registryv1.Project{Name: "accounts/a/projects/p", DisplayName: "red\x1b[31m\n\tgreen\u202e"}
	if err := table(p, projectView, []*registryv1.Project{evil}); err != nil {
		t.Fatal(err)
	}
	if err := card(p, projectView, evil); err != nil {
		t.Fatal(err)
	}
	if strings.ContainsAny(out.String(), "\x1b\t\u202e") {
		t.Errorf("%q", out.String())
	}
}

// pages makes a list of so many projects, a few to a page.
func pagesOf(n, most int) (page[*registryv1.ListProjectsResponse], func(*registryv1.ListProjectsResponse) *[]*registryv1.Project, *int) {
	calls := 0
	return func(_ context.Context, size int32, token string) (*registryv1.ListProjectsResponse, error) {
		calls++
		from := 0
		if token != "" {
			if _, err := fmt.Sscan(token, &from); err != nil {
				return nil, err
			}
		}
		r := &registryv1.ListProjectsResponse{}
		for i := from; i < n && len(r.GetProjects()) < min(most, int(size)); i++ {
			r.Projects = append(r.Projects, &registryv1.Project{Name: fmt.Sprintf("accounts/a/projects/p%d", i)})
		}
		if next := from + len(r.GetProjects()); next < n {
			r.NextPageToken = fmt.Sprint(next)
		}
		return r, nil
	}, func(r *registryv1.ListProjectsResponse) *[]*registryv1.Project { return &r.Projects }, &calls
}

func TestAll_FollowsPagesToTheLimit(t *testing.T) {
	for _, tt := range []struct{ there, limit, want int }{{25, 0, 25}, {25, 500, 25}, {25, 10, 10}, {25, 12, 12}, {0, 10, 0}} {
		var notes bytes.Buffer
		fetch, items, _ := pagesOf(tt.there, 10)
		answer, err := all(t.Context(), &printer{notes: &notes, limit: tt.limit}, fetch, items)
		if err != nil {
			t.Fatal(err)
		}
		if len(answer.GetProjects()) != tt.want {
			t.Errorf("%+v: %d", tt, len(answer.GetProjects()))
		}
		if cut := tt.want < tt.there; cut != strings.Contains(notes.String(), "--limit 0") {
			t.Errorf("%+v: %q", tt, notes.String())
		}
	}
}

func TestWatch_PrintsWhatChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out, notes bytes.Buffer
		ctx, cancel := context.WithCancel(t.Context())
		looks := 0
		err := watch(ctx, &printer{out: &out, notes: &notes, interval: time.Second}, projectView, func(context.Context) ([]*registryv1.Project, error) {
			looks++
			switch one := (&registryv1.Project{Name: "accounts/a/projects/one", DisplayName: "One"}); looks {
			case 1, 2:
				return []*registryv1.Project{one}, nil
			case 3:
				one.DisplayName = "Changed"
				return []*registryv1.Project{one, {Name: "accounts/a/projects/two"}}, nil
			default:
				cancel()
				return []*registryv1.Project{{Name: "accounts/a/projects/two"}}, nil
			}
		})
		if !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		if len(lines) != 4 || !strings.Contains(lines[1], "One") || !strings.Contains(lines[2], "Changed") || !strings.Contains(lines[3], "two") {
			t.Errorf("%s", out.String())
		}
		if notes.String() != "accounts/a/projects/one is gone\n" {
			t.Errorf("%q", notes.String())
		}
	})
}

func TestConfirm_AsksOrRefuses(t *testing.T) {
	for _, tt := range []struct {
		answer          string
		asks, yes, goes bool
	}{
		{"y\n", true, false, true}, {"YES\n", true, false, true}, {"n\n", true, false, false}, {"\n", true, false, false}, {"", true, false, false},
		{"y\n", false, false, false}, {"", false, true, true},
	} {
		s := &session{printer: &printer{notes: &bytes.Buffer{}}, input: strings.NewReader(tt.answer), asks: tt.asks, yes: tt.yes}
		if err := s.confirm("Delete it"); (err == nil) != tt.goes {
			t.Errorf("%+v: %v", tt, err)
		}
	}
}
