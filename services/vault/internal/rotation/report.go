package rotation

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"phasekey.dev/pkg/obs"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/election"
)

// ErrUnknownIntegration is a report's answer when the registry has no such integration.
var ErrUnknownIntegration = errors.New("registry knows no such integration")

// Report is what the registry is told about one integration.
type Report struct {
	IntegrationUID string
	// Conditions are all that are known.
	Conditions []credential.Condition
	// ApplicationDisplayName, ClientID and PrincipalObjectID are empty while they are not known.
	ApplicationDisplayName string
	ClientID               string
	PrincipalObjectID      string
	// Removed: the application of an integration that is being deleted is gone for good.
	Removed bool
}

// reportOf is what the registry should know.
func (t *turn) reportOf(now time.Time, f credential.Facts) Report {
	return Report{
		IntegrationUID:         t.uid,
		Conditions:             credential.Conditions(now, f, t.w.config.Timing),
		ApplicationDisplayName: f.Application.DisplayName,
		ClientID:               f.Application.ClientID,
		PrincipalObjectID:      f.Application.PrincipalObjectID,
	}
}

// digest stands for a report to one incarnation of the registry's database.
func (r Report) digest(incarnation string) string { return digest([]any{incarnation, r}) }

// reportRetry is how long after a report that failed the next one is tried.
const reportRetry = 10 * time.Second

// report tells the registry, if it does not know already.
func (t *turn) report(ctx context.Context) error {
	now := time.Now()
	report := t.reportOf(now, t.facts.Facts)
	sum := report.digest(t.facts.Incarnation)
	if t.reportFailed || !t.facts.Application.ForgetTime.IsZero() || sum == t.facts.Application.ReportDigest {
		return nil
	}
	if err := t.send(ctx, report); err != nil {
		if errors.Is(err, election.ErrFenced) || ctx.Err() != nil {
			return err
		}
		t.reportFailed = true
		t.log.WarnContext(ctx, "registry did not take the report", slog.Any(obs.KeyError, err))
		return nil
	}
	return t.apply(ctx, t.facts.Reported(now, sum))
}

func (t *turn) send(ctx context.Context, report Report) error {
	callCtx, cancel := context.WithTimeout(ctx, t.w.config.Timeout)
	defer cancel()
	err := t.w.config.Reporter.Report(callCtx, t.m, report)
	outcome := "ok"
	if err != nil {
		outcome = "failed"
	}
	t.w.metrics.reports.WithLabelValues(outcome).Inc()
	return err
}

// forget tells the registry that the application is gone.
func (t *turn) forget(ctx context.Context) error {
	report := t.reportOf(time.Now(), t.facts.Facts)
	report.Removed = true
	err := t.send(ctx, report)
	switch {
	case errors.Is(err, election.ErrFenced) || err != nil && ctx.Err() != nil:
		return err
	case err != nil && !errors.Is(err, ErrUnknownIntegration):
		t.log.WarnContext(ctx, "registry did not take the report", slog.Any(obs.KeyError, err))
		return t.learn(ctx, t.facts.ApplicationFailed(time.Now(), t.w.config.Timing, credential.Failure{Kind: credential.Again}))
	}
	t.log.InfoContext(ctx, "integration is gone for good")
	return t.learn(ctx, t.facts.Forgotten(time.Now()))
}
