package entrasim

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// maxBody is more than any request the planes know needs.
const maxBody = 1 << 20

// call is one request on its way through the simulator.
type call struct {
	*http.Request

	body []byte
	path []string  // unescaped segments, without those that led to the plane
	now  time.Time // when it acts
	came time.Time

	plane     Plane
	operation string // such as graph.application.addPassword
	tenant    string
	// tenantName and applicationName are for texts of the login plane.
	tenantName, applicationName string
	// actor is the calling application's ID, or control, or anonymous.
	actor       string
	application string // application ID of the target
	keyID       string
	part        graphKey // what is asked for within the target, if anything
	replica     int

	requestID, clientRequestID string

	// token is the verified bearer token, on the planes that have one.
	token *accessToken
	// run carries the request out.
	run func(*call) reply
	// fail answers in the plane's error envelope.
	fail func(status int, code, message string) reply
}

// reply is an answer before it is written, so that it can still be lost.
type reply struct {
	status int
	header http.Header
	body   []byte
	code   string // the error code, for the journal
	cut    bool   // break the connection instead
	short  bool   // break the connection in the middle of the body
}

// Handler serves all planes: by host name (login.…, graph.…, management.…) or,
// under any other name, by path; the admin plane under /admin of any host.
func (s *Simulator) Handler() http.Handler {
	return s.handler("")
}

// handler serves one plane, or all of them.
func (s *Simulator) handler(only Plane) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a, err := s.serve(r, only)
		if err != nil || a.cut {
			// The documented way of breaking a connection; net/http recovers it.
			panic(http.ErrAbortHandler) //nolint:forbidigo // see above
		}
		for k, v := range a.header {
			w.Header()[k] = v
		}
		if a.short {
			w.Header().Set("Content-Length", strconv.Itoa(len(a.body)))
			a.body = a.body[:len(a.body)/2]
		}
		w.WriteHeader(a.status)
		_, _ = w.Write(a.body) // a caller that has gone needs no answer
		if a.short {
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler) //nolint:forbidigo // as above
		}
	})
}

// Transport carries requests to the simulator without a socket, a goroutine or
// a timer of its own. A cancelled request ends with its context's error.
func (s *Simulator) Transport() http.RoundTripper {
	return transport{s}
}

type transport struct{ sim *Simulator }

func (t transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		defer func() { _ = r.Body.Close() }()
	}
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	in := r.Clone(r.Context())
	if in.Host == "" {
		in.Host = r.URL.Host
	}
	if in.Body == nil {
		in.Body = http.NoBody
	}
	a, err := t.sim.serve(in, "")
	if err != nil {
		return nil, err
	}
	if a.cut {
		return nil, fmt.Errorf("%s %s: %w", r.Method, r.URL.Host, io.ErrUnexpectedEOF)
	}
	body := io.Reader(bytes.NewReader(a.body))
	if a.short {
		body = io.MultiReader(bytes.NewReader(a.body[:len(a.body)/2]), broken{})
	}
	return &http.Response{
		Status:        fmt.Sprintf("%d %s", a.status, http.StatusText(a.status)),
		StatusCode:    a.status,
		Proto:         "HTTP/1.1",
		ProtoMajor:    1,
		ProtoMinor:    1,
		Header:        a.header,
		Body:          io.NopCloser(body),
		ContentLength: int64(len(a.body)),
		Request:       r,
	}, nil
}

// broken is the rest of a body whose connection has broken.
type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// Run serves all planes by HTTPS on the listener until ctx ends, then finishes
// what is under way within a second, and cuts what is not finished then.
func (s *Simulator) Run(ctx context.Context, listener net.Listener, config *tls.Config) error {
	return s.RunPlane(ctx, "", listener, config)
}

// RunPlane is Run for one plane alone, whatever the hosts and paths are.
func (s *Simulator) RunPlane(ctx context.Context, plane Plane, listener net.Listener, config *tls.Config) error {
	server := &http.Server{
		Handler:           s.handler(plane),
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    1 << 16,
		TLSConfig:         config,
		// A client that hangs up or distrusts the CA is no news here.
		ErrorLog: slog.NewLogLogger(s.config.Log.Handler(), slog.LevelDebug),
	}
	failed := make(chan error, 1)
	go func() { failed <- server.ServeTLS(listener, "", "") }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	err := server.Shutdown(grace)
	if errors.Is(err, context.DeadlineExceeded) {
		err = server.Close()
	}
	if served := <-failed; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}

// serve takes one request from identification to the journal. Its error is that
// of a caller who has gone.
func (s *Simulator) serve(r *http.Request, only Plane) (reply, error) {
	c := &call{Request: r, now: time.Now().UTC(), actor: "anonymous"}
	c.came = c.now
	c.plane, c.path = locate(r, only)
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil {
		return reply{}, fmt.Errorf("read request: %w", err)
	}
	c.body = body
	switch c.plane {
	case PlaneLogin:
		s.routeLogin(c)
	case PlaneGraph:
		s.routeGraph(c)
	case PlaneARM:
		s.routeARM(c)
	case PlaneAdmin:
		s.routeAdmin(c)
	}
	// Known only now whose it is: another actor's requests do not change it.
	c.requestID = s.dice.Of(c.actor).UUID()
	c.clientRequestID = c.requestID
	if id := r.Header.Get("client-request-id"); isGUID(id) {
		c.clientRequestID = id
	}
	if len(body) > maxBody {
		c.run = func(c *call) reply {
			return c.fail(http.StatusRequestEntityTooLarge, "RequestEntityTooLarge", "The request is too large.")
		}
	}
	return s.carryOut(c)
}

func (s *Simulator) carryOut(c *call) (reply, error) {
	dice := s.dice.Of(c.actor)
	c.replica = dice.IntN(s.config.Replicas)
	var fault *Fault
	if c.plane != PlaneAdmin {
		fault = s.strike(c, dice)
	}
	var answer reply
	spoil := fault != nil && (fault.Effect.Cut || fault.Effect.Status != 0)
	if fault != nil {
		if err := wait(c.Context(), fault.Effect.Delay); err != nil {
			s.record(c, reply{cut: true}, fault, false)
			return reply{}, err
		}
	}
	lost := false
	if !spoil || fault.Effect.AfterCommit {
		c.now = c.now.Add(time.Since(c.now)) // a delayed request acts when it arrives
		answer = c.run(c)
	}
	if spoil {
		lost = fault.Effect.AfterCommit
		answer = fault.answer(c)
	}
	if fault != nil && fault.Effect.CutBody && !answer.cut {
		lost = lost || !spoil
		answer.short, answer.cut = len(answer.body) > 1, len(answer.body) <= 1
	}
	s.record(c, answer, fault, lost)
	return answer, nil
}

func (s *Simulator) record(c *call, answer reply, fault *Fault, lost bool) {
	now := time.Now().UTC()
	e := Entry{
		Time: now, Kind: KindRequest, Actor: c.actor, RequestID: c.requestID, Tenant: c.tenant, Application: c.application,
		KeyID: c.keyID, Plane: c.plane, Operation: c.operation, Method: clip(c.Method, 16), Path: clip(c.URL.Path, 256),
		Status: answer.status, Code: answer.code, Replica: c.replica, Lost: lost, Took: now.Sub(c.now),
	}
	if fault != nil {
		e.Fault = fault.ID
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.journal.addRequest(e)
}

// wait is a sleep that ends with the context.
func wait(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// clip shortens text that a caller chose before it is kept.
func clip(text string, n int) string {
	if len(text) > n {
		text = text[:n]
	}
	return strings.ToValidUTF8(text, "?")
}

func isGUID(text string) bool {
	if len(text) != 36 {
		return false
	}
	for i := range len(text) {
		b := text[i]
		switch i {
		case 8, 13, 18, 23:
			if b != '-' {
				return false
			}
		default:
			if (b < '0' || b > '9') && (b < 'a' || b > 'f') && (b < 'A' || b > 'F') {
				return false
			}
		}
	}
	return true
}
