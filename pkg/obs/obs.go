// Package obs is how a service is observed: its log, its metrics, and the pages on which liveness and metrics, and profiles, stand.
//
// It guarantees that nothing is global: the logger and the registry are made once in main and handed down, so two services
// can live in one process (and tests in parallel) without sharing either; that whatever is logged passes redaction by
// type; and that metrics leave only over loopback or TLS, and profiles only over loopback. It does not decide readiness: that is gRPC health, per service.
//
// The tricky idea: the request's ID travels in the context, so that a logger handed down at start still names the request
// in each record made while it is served.
package obs

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"runtime/debug"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"phasekey.dev/pkg/loopback"
	"phasekey.dev/pkg/task"
)

var (
	// ErrPlaintext is returned for a metrics listener that is neither on loopback nor behind TLS.
	ErrPlaintext = errors.New("metrics beyond loopback need TLS")
	// ErrExposed is returned for a listener for profiles that is not on loopback.
	ErrExposed = errors.New("profiles are served on loopback only: use a tunnel")
)

// longestProfile is how long a profile may be taken.
const longestProfile = 2 * time.Minute

// NewRegistry returns a registry with the collectors of the Go runtime, the process, and the build.
func NewRegistry(service string) *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	info := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "phasekey_build_info",
		Help: "Always 1; the labels say which service, version and Go this process was built from.",
	}, []string{"service", "version", "revision", "go"})
	b := ReadBuild()
	info.WithLabelValues(service, b.Version, b.Revision, b.Go).Set(1)
	r.MustRegister(info)
	return r
}

// Build is what a binary knows of how it was built.
type Build struct {
	Version, Revision, Go string
}

// ReadBuild reads the build's data from the running binary; what was not stamped is "unknown".
func ReadBuild() Build {
	out := Build{Version: "unknown", Revision: "unknown", Go: "unknown"}
	bi, ok := debug.ReadBuildInfo()
	if !ok {
		return out
	}
	out.Go = bi.GoVersion
	if bi.Main.Version != "" {
		out.Version = bi.Main.Version
	}
	for _, s := range bi.Settings {
		if s.Key == "vcs.revision" {
			out.Revision = s.Value
		}
	}
	return out
}

// MetricsTask returns a task that serves GET /metrics (from g) and GET /livez (200 as long as the process answers) on
// the listener, which it closes at the end. Without tlsConfig the listener must be on loopback, else ErrPlaintext.
func MetricsTask(ln net.Listener, tlsConfig *tls.Config, g prometheus.Gatherer, log *slog.Logger) (task.Task, error) {
	if tlsConfig == nil {
		if !loopback.Address(ln.Addr().String()) {
			return task.Task{}, fmt.Errorf("listen on %s: %w", ln.Addr(), ErrPlaintext)
		}
	} else {
		ln = tls.NewListener(ln, tlsConfig)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(g, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}))
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("ok\n"))
	})
	return pagesTask("metrics", ln, mux, 30*time.Second, log), nil
}

// ProfileTask returns a task that serves Go's profiles of the process, GET /debug/pprof/, on the listener, which it closes at the end. A profile shows what the
// process does, and taking one costs what it measures; so the listener must be on loopback, else ErrExposed.
func ProfileTask(ln net.Listener, log *slog.Logger) (task.Task, error) {
	if !loopback.Address(ln.Addr().String()) {
		return task.Task{}, fmt.Errorf("listen on %s: %w", ln.Addr(), ErrExposed)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return pagesTask("profiles", ln, mux, longestProfile, log), nil
}

// pagesTask serves pages over HTTP, each of which may take so long to write.
func pagesTask(name string, ln net.Listener, pages http.Handler, writing time.Duration, log *slog.Logger) task.Task {
	srv := &http.Server{
		Handler:           pages,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      writing,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	run := func(ctx context.Context) error {
		served := make(chan error, 1)
		go func() { served <- srv.Serve(ln) }()
		select {
		case err := <-served:
			return fmt.Errorf("serve %s: %w", name, err)
		case <-ctx.Done():
		}
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		if err := srv.Shutdown(stop); err != nil {
			// A scraper that reads slowly does not hold the process.
			_ = srv.Close()
		}
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve %s: %w", name, err)
		}
		return nil
	}
	return task.Task{Name: name, Run: run, Grace: 5 * time.Second}
}
