package entra

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"phasekey.dev/pkg/obs"
)

const (
	// watchInterval is how often the ends of the platform's own credentials are looked at.
	watchInterval = time.Hour
	// warnFrom is how long before its end a credential is warned of, once in warnInterval; in the last errorFrom it is an error.
	warnFrom     = 30 * 24 * time.Hour
	errorFrom    = 7 * 24 * time.Hour
	warnInterval = 24 * time.Hour
)

// Watch warns of the platform's own credentials before they end: in the log, and by a metric.
type Watch struct {
	clouds Clouds
	log    *slog.Logger
	left   *prometheus.GaugeVec
	// warned is when each was last warned of.
	warned map[string]time.Time
}

// NewWatch makes a Watch; metrics is where its metric is registered, nil nowhere.
func NewWatch(clouds Clouds, log *slog.Logger, metrics prometheus.Registerer) (*Watch, error) {
	w := &Watch{clouds: clouds, log: log, warned: map[string]time.Time{}, left: prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "phasekey_vault_own_credential_seconds_left",
		Help: "How long the platform's own certificate or client secret in a cloud is valid still, in seconds; absent while that is not known.",
	}, []string{"cloud", "credential"})}
	if metrics != nil {
		if err := metrics.Register(w.left); err != nil {
			return nil, fmt.Errorf("register metrics of own credentials: %w", err)
		}
	}
	return w, nil
}

// Run watches until ctx ends.
func (w *Watch) Run(ctx context.Context) error {
	ticks := time.NewTicker(watchInterval)
	defer ticks.Stop()
	for {
		w.look(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-ticks.C:
		}
	}
}

// lookTimeout bounds a look at one cloud's credentials.
const lookTimeout = 30 * time.Second

func (w *Watch) look(ctx context.Context) {
	for _, cloud := range slices.Sorted(maps.Keys(w.clouds)) {
		one, cancel := context.WithTimeout(ctx, lookTimeout)
		all := w.clouds[cloud].Expiries(one)
		cancel()
		if ctx.Err() != nil {
			return
		}
		for _, e := range all {
			w.tell(ctx, time.Now(), cloud, e)
		}
	}
}

// tell says how long a credential has.
func (w *Watch) tell(ctx context.Context, now time.Time, cloud string, e Expiry) {
	if e.End.IsZero() {
		w.left.DeleteLabelValues(cloud, string(e.Kind))
	} else {
		w.left.WithLabelValues(cloud, string(e.Kind)).Set(e.End.Sub(now).Seconds())
	}
	level, text := slog.LevelWarn, ""
	switch left := e.End.Sub(now); {
	case e.Err != nil:
		text = "it is not known when the platform's own credential ends"
	case left <= 0:
		level, text = slog.LevelError, "the platform's own credential has ended: Entra refuses the vault"
	case left <= errorFrom:
		level, text = slog.LevelError, "the platform's own credential ends within days"
	case left <= warnFrom:
		text = "the platform's own credential ends soon"
	}
	key := cloud + " " + string(e.Kind) + " " + text
	if last, ok := w.warned[key]; text == "" || ok && now.Sub(last) < warnInterval {
		return
	}
	w.warned[key] = now
	attrs := []slog.Attr{slog.String("cloud", cloud), slog.String("credential", string(e.Kind))}
	if e.Err != nil {
		attrs = append(attrs, slog.Any(obs.KeyError, e.Err))
	} else {
		attrs = append(attrs, slog.Time("end", e.End))
	}
	w.log.LogAttrs(ctx, level, text, attrs...) //nolint:sloglint // one of the texts above
}
