package grpctest

import (
	"cmp"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"phasekey.dev/pkg/rpcerr"
)

var (
	// metadataKey is how a key of ErrorInfo's metadata should be (AIP-193).
	metadataKey = regexp.MustCompile(`^[a-z][a-zA-Z0-9]{0,63}$`)
	// ofOneCall is what no message says of every call: numbers, names, what is quoted, an access.
	ofOneCall = regexp.MustCompile(`[0-9/"]|\b(READ|WRITE)\b`)
)

// CheckRefusal fails the test unless an error is as AIP-193 has it: with an ErrorInfo of our domain, in whose metadata everything stands that the
// message says of this one call. The end of a call's context, and what gRPC says by itself, need none.
func CheckRefusal(t testing.TB, err error) {
	t.Helper()
	st, ok := rpcerr.FromError(err)
	if !ok {
		t.Errorf("no refusal: %v", err)
		return
	}
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			checkInfo(t, st, info)
			return
		}
	}
	if !slices.Contains([]codes.Code{codes.Canceled, codes.DeadlineExceeded, codes.Unimplemented}, st.Code()) {
		t.Errorf("%v has no ErrorInfo", err)
	}
}

func checkInfo(t testing.TB, st *status.Status, info *errdetails.ErrorInfo) {
	t.Helper()
	if info.GetDomain() != rpcerr.Domain || info.GetReason() == "" {
		t.Errorf("%q is of the domain %q, for the reason %q", st.Message(), info.GetDomain(), info.GetReason())
	}
	rest := st.Message()
	// The longest first, since a name begins with its parent's.
	for _, value := range slices.SortedFunc(maps.Values(info.GetMetadata()), func(a, b string) int { return cmp.Compare(len(b), len(a)) }) {
		if value != "" {
			rest = strings.ReplaceAll(rest, value, "")
		}
	}
	if found := ofOneCall.FindString(rest); found != "" {
		t.Errorf("the message %q says %q, which is not in the metadata %v", st.Message(), found, info.GetMetadata())
	}
	for key := range info.GetMetadata() {
		if !metadataKey.MatchString(key) {
			t.Errorf("%q has the metadata key %q, not in lower camel case", st.Message(), key)
		}
	}
}
