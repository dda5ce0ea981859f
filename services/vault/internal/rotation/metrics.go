package rotation

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"phasekey.dev/services/vault/internal/store"
)

type metrics struct {
	calls       *prometheus.CounterVec
	proofs      *prometheus.CounterVec
	rotations   prometheus.Counter
	unreadable  prometheus.Counter
	failOvers   prometheus.Counter
	transitions *prometheus.CounterVec
	reports     *prometheus.CounterVec
	// By shard, while this replica is its master.
	lag, age, expiring, consentLost, unlisted, foreign, stray, open *prometheus.GaugeVec
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "phasekey_vault_entra_calls_total",
			Help: "Requests to Entra ID and Graph by the rotator, by operation and by the class of the answer (ok when granted).",
		}, []string{"op", "class"}),
		proofs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "phasekey_vault_proofs_total",
			Help: "Token requests that were to prove a credential version, by what they told; many refused ones mean that Entra lags.",
		}, []string{"finding"}),
		rotations: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "phasekey_vault_rotations_total",
			Help: "Credential versions that replaced another one.",
		}),
		unreadable: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "phasekey_vault_secrets_unreadable_total",
			Help: "Client secrets that the vault had stored and could not open. Above 0: a data key is gone from the database, or somebody changed records.",
		}),
		failOvers: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "phasekey_vault_database_failovers_total",
			Help: "How often this replica was the first to notice that the database is on another timeline: a standby was promoted, or a backup restored.",
		}),
		transitions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "phasekey_vault_version_transitions_total",
			Help: "Credential versions that entered a state.",
		}, []string{"state"}),
		reports: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "phasekey_vault_reports_total",
			Help: "Reports to the registry, by outcome (ok, failed).",
		}, []string{"outcome"}),
		lag: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "phasekey_vault_schedule_lag_seconds",
			Help: "For how long the integration of the shard has been due that has been due for longest, also while it waits for Graph's budget; not while it is tried again after a refusal. More than a minute: too much to do, or no budget.",
		}, []string{"shard"}),
		age: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "phasekey_vault_active_version_age_seconds",
			Help: "Age of the shard's oldest active client secret, of those integrations that have consent. Unless rotation is paused it stays below 1.1 of the longest rotation period.",
		}, []string{"shard"}),
		expiring: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "phasekey_vault_credential_versions_expiring",
			Help: "Active credential versions of the shard that should have been replaced: less than a period of their lives is left. Where consent was lost, or while a pause puts them off, they are not counted.",
		}, []string{"shard"}),
		consentLost: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "phasekey_vault_applications_without_consent",
			Help: "Applications of the shard that had consent and have it no more. It comes back by itself, or their integrations are deleted.",
		}, []string{"shard"}),
		unlisted: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "phasekey_vault_applications_without_integration",
			Help: "Applications of the shard whose integrations the registry does not list, though they were not deleted; looked at hourly. Above 0: nothing is done about them, and their secrets end.",
		}, []string{"shard"}),
		foreign: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "phasekey_vault_applications_with_foreign_credentials",
			Help: "Applications of the shard that have passwords or federated credentials which the vault did not make. Above 0: somebody else can act as them.",
		}, []string{"shard"}),
		stray: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "phasekey_vault_applications_with_stray_passwords",
			Help: "Applications of the shard with a password that is to go and whose removal failed ten times in a row. Above 0: remove it by hand.",
		}, []string{"shard"}),
		open: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "phasekey_vault_rotations_open",
			Help: "Rotations in the shard that somebody asked for, by reason. SCHEDULED: that are under way. COMPROMISED: of which an old secret is still there, and has not ended by itself.",
		}, []string{"shard", "reason"}),
	}
	if r == nil {
		return m, nil
	}
	var problems []error
	for _, c := range []prometheus.Collector{m.calls, m.proofs, m.rotations, m.unreadable, m.failOvers, m.transitions, m.reports, m.lag, m.age, m.expiring, m.consentLost, m.unlisted, m.foreign, m.stray, m.open} {
		problems = append(problems, r.Register(c))
	}
	if err := errors.Join(problems...); err != nil {
		return nil, fmt.Errorf("register metrics of rotation: %w", err)
	}
	return m, nil
}

// measured sets the gauges of a shard.
func (m *metrics) measured(shard int, now time.Time, s store.Schedule) {
	label := strconv.Itoa(shard)
	m.lag.WithLabelValues(label).Set(s.Lag.Seconds())
	m.expiring.WithLabelValues(label).Set(float64(s.Expiring))
	m.consentLost.WithLabelValues(label).Set(float64(s.ConsentLost))
	m.unlisted.WithLabelValues(label).Set(float64(s.Unlisted))
	m.foreign.WithLabelValues(label).Set(float64(s.Foreign))
	m.stray.WithLabelValues(label).Set(float64(s.Stray))
	age := 0.0
	if !s.OldestActive.IsZero() {
		age = now.Sub(s.OldestActive).Seconds()
	}
	m.age.WithLabelValues(label).Set(age)
	for reason, n := range s.Open {
		m.open.WithLabelValues(label, string(reason)).Set(float64(n))
	}
}

// forget removes the gauges of a shard that another replica may be master of from now on.
func (m *metrics) forget(shard int) {
	label := prometheus.Labels{"shard": strconv.Itoa(shard)}
	for _, gauge := range []*prometheus.GaugeVec{m.lag, m.age, m.expiring, m.consentLost, m.unlisted, m.foreign, m.stray, m.open} {
		gauge.DeletePartialMatch(label)
	}
}
