package rpc

import (
	"context"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
	"phasekey.dev/services/vault/internal/credential"
)

// accessService implements vaultv1.AccessServiceServer.
type accessService struct {
	vaultv1.UnsafeAccessServiceServer
	prober  prober
	checker checker
}

func (s accessService) ProbeConsent(ctx context.Context, req *vaultv1.ProbeConsentRequest) (*vaultv1.ProbeConsentResponse, error) {
	came := time.Now()
	answer, err := s.prober.Probe(ctx, req.GetIntegration())
	if err != nil {
		return nil, statusAbout(err, req.GetIntegration())
	}
	resp := &vaultv1.ProbeConsentResponse{ProbeTime: timestamppb.New(answer.Time), Age: durationpb.New(max(0, came.Sub(answer.Time)))}
	if answer.Finding == credential.Works {
		resp.Consented, resp.ServicePrincipalObjectId = true, answer.PrincipalObjectID
	} else {
		resp.AadstsCode = aadsts(answer.Code)
	}
	return resp, nil
}

// aadsts is the number of a code like AADSTS700016; 0 for any other.
func aadsts(code string) int32 {
	digits, ok := strings.CutPrefix(code, "AADSTS")
	if !ok {
		return 0
	}
	n, err := strconv.ParseInt(digits, 10, 32)
	if err != nil {
		return 0
	}
	return int32(n)
}
