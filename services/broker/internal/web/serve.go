package web

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"golang.org/x/net/netutil"

	"phasekey.dev/pkg/limit"
	"phasekey.dev/pkg/task"
)

const (
	// maxConnections bounds the descriptors that browsers use up.
	maxConnections = 2048
	// maxHeader bounds a request's headers, in bytes; a browser that began many attempts has many cookies.
	maxHeader = 16 << 10
	// maxStreams bounds the requests of one HTTP/2 connection at a time.
	maxStreams = 32
	// closeTimeout is how long closing what is left takes at most.
	closeTimeout = time.Second
)

// Task serves the pages on the listener, which it closes at the end. Requests at hand are given drain to end.
func (s *Site) Task(ln net.Listener, config *tls.Config, drain time.Duration) task.Task {
	srv := &http.Server{
		Handler:           s.handler,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      20 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    maxHeader,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: maxStreams},
		// net/http would answer OPTIONS * by itself, past all that holds for answers of ours.
		DisableGeneralOptionsHandler: true,
		// Handshakes that fail, mostly: anybody can make as many as they like.
		ErrorLog: slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug),
	}
	// Pages that are live would hold the stop up for as long as it may take.
	srv.RegisterOnShutdown(s.stop)
	run := func(ctx context.Context) error {
		served := make(chan error, 1)
		fair := &fairListener{Listener: ln, proxies: s.cfg.Proxies, refused: s.refused, open: limit.NewPlaces(maxPerSource)}
		go func() { served <- srv.Serve(tls.NewListener(netutil.LimitListener(fair, maxConnections), config)) }()
		select {
		case err := <-served:
			return fmt.Errorf("serve pages: %w", err)
		case <-ctx.Done():
		}
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
		defer cancel()
		if err := srv.Shutdown(stop); err != nil {
			// A browser that reads slowly does not hold the process.
			_ = srv.Close()
		}
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve pages: %w", err)
		}
		return nil
	}
	return task.Task{Name: "pages", Run: run, Grace: drain + closeTimeout}
}
