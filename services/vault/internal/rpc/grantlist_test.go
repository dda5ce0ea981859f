package rpc_test

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	typev1 "phasekey.dev/gen/phasekey/type/v1"
	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
)

func run(name string) func(*vaultv1.CreateGrantRequest) {
	return func(r *vaultv1.CreateGrantRequest) { r.Grant.Run = name }
}

func TestGrants_ListByFilterAndOrder(t *testing.T) {
	inBubble(t, func(v *vault) {
		create := func(name string, change ...func(*vaultv1.CreateGrantRequest)) string {
			g, _ := v.grant(append(change, run(name))...)
			time.Sleep(time.Second)
			return g.GetName()
		}
		began := time.Now()
		plan := create("run-1")
		apply := create("run-1", func(r *vaultv1.CreateGrantRequest) { r.Grant.Phase = typev1.Phase_PHASE_APPLYING })
		other := create("run-2")
		if _, err := v.platform.RevokeGrant(v.t.Context(), &vaultv1.RevokeGrantRequest{Name: plan}); err != nil {
			v.t.Fatal(err)
		}
		read := func(filter, orderBy string, size int32) (names []string) {
			req := &vaultv1.ListGrantsRequest{Parent: "accounts/acme", Filter: filter, OrderBy: orderBy, PageSize: size}
			for {
				resp, err := v.platform.ListGrants(v.t.Context(), req)
				if err != nil {
					v.t.Fatalf("%s, %s: %v", filter, orderBy, err)
				}
				for _, g := range resp.GetGrants() {
					names = append(names, g.GetName())
				}
				if req.PageToken = resp.GetNextPageToken(); req.GetPageToken() == "" {
					return names
				}
			}
		}
		second := `"` + began.Add(time.Second).UTC().Format(time.RFC3339Nano) + `"`
		for _, tt := range []struct {
			filter, order string
			want          []string
		}{
			{``, ``, []string{plan, apply, other}},
			{``, `name desc`, []string{other, apply, plan}},
			{``, `expire_time desc, name`, []string{other, apply, plan}},
			{`run = "run-1"`, `create_time`, []string{plan, apply}},
			{`run = "run-1" AND state = ACTIVE`, ``, []string{apply}},
			{`state = STATE_REVOKED`, ``, []string{plan}},
			{`NOT state = ACTIVE`, ``, []string{plan}},
			{`revoke_time:*`, ``, []string{plan}},
			{`phase = PHASE_APPLYING OR run:"-2"`, ``, []string{apply, other}},
			{`access = WRITE`, ``, []string{apply}},
			{`create_time >= ` + second, ``, []string{apply, other}},
			{`project = "` + project + `" AND integration = "accounts/acme/integrations/read" AND expire_time > ` + second, ``, []string{plan, apply, other}},
			{`integration = "accounts/acme/integrations/write"`, ``, nil},
			{`certificate_sha256:*`, ``, nil},
			{`name = "` + other + `"`, ``, []string{other}},
		} {
			for _, size := range []int32{0, 1, 2} {
				if got := read(tt.filter, tt.order, size); !slices.Equal(got, tt.want) {
					v.t.Errorf("%q by %q, %d a page: %q, want %q", tt.filter, tt.order, size, got, tt.want)
				}
			}
		}
		time.Sleep(time.Hour)
		if got := read(`state = ACTIVE`, ``, 0); got != nil {
			v.t.Errorf("live after an hour: %q", got)
		}
		if got := read(`state = EXPIRED`, ``, 0); !slices.Equal(got, []string{apply, other}) {
			v.t.Errorf("over after an hour: %q", got)
		}
	})
}

func TestGrants_ListRefuses(t *testing.T) {
	inBubble(t, func(v *vault) {
		v.grant()
		v.grant()
		list := func(filter, order, token string) (*vaultv1.ListGrantsResponse, error) {
			return v.platform.ListGrants(v.t.Context(), &vaultv1.ListGrantsRequest{
				Parent: "accounts/acme", Filter: filter, OrderBy: order, PageToken: token, PageSize: 1,
			})
		}
		for filter, says := range map[string]string{
			`token = "x"`: "no such field", `state = ALIVE`: "no such value", `run`: "compared", `create_time > yesterday`: "RFC 3339",
			strings.Repeat(`run = a AND `, 100) + `run = a`: "100 comparisons",
		} {
			_, err := list(filter, "", "")
			refused(v.t, filter, err, codes.InvalidArgument, "INVALID_FIELDS")
			if !slices.Equal(fields(err), []string{"filter"}) || !strings.Contains(violations(err), says) {
				v.t.Errorf("%s: names %v: %s", filter, fields(err), violations(err))
			}
		}
		for _, order := range []string{"run", "name, name", "name up", "create_time,", "expire_time, expire_time desc"} {
			_, err := list("", order, "")
			refused(v.t, order, err, codes.InvalidArgument, "INVALID_FIELDS")
			if !slices.Equal(fields(err), []string{"order_by"}) {
				v.t.Errorf("%s: names %v", order, fields(err))
			}
		}
		resp, err := list(`state = ACTIVE`, `expire_time`, "")
		if err != nil || resp.GetNextPageToken() == "" {
			v.t.Fatalf("a page: %v, %v", resp, err)
		}
		if _, err := list(`state = ACTIVE`, `expire_time`, resp.GetNextPageToken()); err != nil {
			v.t.Errorf("the next page: %v", err)
		}
		for _, other := range [][2]string{{`state = ACTIVE`, ``}, {`state = ACTIVE`, `expire_time desc`}, {``, `expire_time`}} {
			_, err := list(other[0], other[1], resp.GetNextPageToken())
			refused(v.t, "a token of another list", err, codes.InvalidArgument, "INVALID_PAGE_TOKEN")
		}
	})
}

func TestGrants_RevokeMany(t *testing.T) {
	inBubble(t, func(v *vault) {
		revoke := func(client vaultv1.GrantServiceClient, r *vaultv1.RevokeGrantsRequest) (int64, error) {
			resp, err := client.RevokeGrants(v.t.Context(), r)
			return resp.GetRevokedCount(), err
		}
		byRun := &vaultv1.RevokeGrantsRequest{Parent: "accounts/acme", Scope: &vaultv1.RevokeGrantsRequest_Run{Run: "run-1"}}
		byIntegration := &vaultv1.RevokeGrantsRequest{Parent: "accounts/acme", Scope: &vaultv1.RevokeGrantsRequest_Integration{Integration: "accounts/acme/integrations/read"}}
		var streams []*reader
		for i := range 120 {
			name := "run-1"
			if i >= 118 {
				name = "run-2"
			}
			_, ctx := v.grant(run(name))
			if i%20 == 0 || i == 119 {
				streams = append(streams, v.read(ctx, "instance-1"))
			}
		}
		if n, err := revoke(v.platform, byRun); n != 118 || err != nil {
			v.t.Errorf("revoked %d of the run: %v", n, err)
		}
		synctest.Wait()
		for i, s := range streams {
			switch _, err := s.state(); {
			case i == len(streams)-1 && err != nil:
				v.t.Errorf("the other run's stream ended: %v", err)
			case i < len(streams)-1:
				refused(v.t, "a stream of the run", err, codes.PermissionDenied, "GRANT_REVOKED")
			}
		}
		if n, err := revoke(v.operator, byRun); n != 0 || err != nil {
			v.t.Errorf("revoked %d of the run again: %v", n, err)
		}
		if n, err := revoke(v.operator, byIntegration); n != 2 || err != nil {
			v.t.Errorf("revoked %d of the integration: %v", n, err)
		}
		synctest.Wait()
		_, err := streams[len(streams)-1].state()
		refused(v.t, "the last stream", err, codes.PermissionDenied, "GRANT_REVOKED")

		for _, tt := range []struct {
			name    string
			request *vaultv1.RevokeGrantsRequest
			code    codes.Code
			reason  string
		}{
			{"no scope", &vaultv1.RevokeGrantsRequest{Parent: "accounts/acme"}, codes.InvalidArgument, "INVALID_FIELDS"},
			{"an empty run", &vaultv1.RevokeGrantsRequest{Parent: "accounts/acme", Scope: &vaultv1.RevokeGrantsRequest_Run{}}, codes.InvalidArgument, "INVALID_FIELDS"},
			{"an empty integration", &vaultv1.RevokeGrantsRequest{Parent: "accounts/acme", Scope: &vaultv1.RevokeGrantsRequest_Integration{}}, codes.InvalidArgument, "INVALID_FIELDS"},
			{"another account", &vaultv1.RevokeGrantsRequest{Parent: "accounts/other", Scope: byRun.GetScope()}, codes.PermissionDenied, "ACCOUNT_NOT_ALLOWED"},
			{"another account's integration", &vaultv1.RevokeGrantsRequest{Parent: "accounts/acme", Scope: &vaultv1.RevokeGrantsRequest_Integration{
				Integration: "accounts/other/integrations/read",
			}}, codes.PermissionDenied, "ACCOUNT_NOT_ALLOWED"},
		} {
			_, err := revoke(v.platform, tt.request)
			refused(v.t, tt.name, err, tt.code, tt.reason)
		}
		_, err = revoke(v.operator, &vaultv1.RevokeGrantsRequest{Parent: "accounts/acme", Scope: &vaultv1.RevokeGrantsRequest_Integration{
			Integration: "accounts/other/integrations/read",
		}})
		refused(v.t, "another account's integration, by somebody who may name both", err, codes.InvalidArgument, "INVALID_FIELDS")
		if !slices.Equal(fields(err), []string{"integration"}) {
			v.t.Errorf("names %v", fields(err))
		}
	})
}

// violations are what an INVALID_ARGUMENT says of its fields.
func violations(err error) string {
	var out []string
	for _, d := range status.Convert(err).Details() {
		if bad, ok := d.(*errdetails.BadRequest); ok {
			for _, v := range bad.GetFieldViolations() {
				out = append(out, v.GetDescription())
			}
		}
	}
	return strings.Join(out, "; ")
}
