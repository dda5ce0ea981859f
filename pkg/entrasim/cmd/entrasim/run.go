package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"phasekey.dev/pkg/entrasim"
	"phasekey.dev/pkg/entrasim/internal/devtls"
)

// options are the command line.
type options struct {
	listen, listenLogin, listenGraph, listenARM, listenAdmin     string
	base, domain                                                 string
	state, tlsDir, cert, key, names, issuerCA                    string
	seed                                                         uint64
	replicas, maxCredentials                                     int
	lags                                                         entrasim.Lags
	life                                                         span
	journalLife                                                  time.Duration
	secretFirst, race, lockAtHome, openAdmin, verbose, unlimited bool
	conflicts                                                    entrasim.WriteConflicts
	loop                                                         rate
}

// define makes the flags, which write to the options.
func define(help io.Writer) (*options, *flag.FlagSet) {
	o := &options{life: span{60 * time.Minute, 90 * time.Minute}}
	f := flag.NewFlagSet("entrasim", flag.ContinueOnError)
	f.SetOutput(help)
	f.Usage = func() { usage(f, help) }
	f.StringVar(&o.listen, "listen", "127.0.0.1:8443", "`address` to serve on all that has no address of its own")
	f.StringVar(&o.listenLogin, "listen-login", "", "`address` to serve the login endpoints on alone")
	f.StringVar(&o.listenGraph, "listen-graph", "", "`address` to serve Graph on alone")
	f.StringVar(&o.listenARM, "listen-arm", "", "`address` to serve Resource Manager on alone")
	f.StringVar(&o.listenAdmin, "listen-admin", "", "`address` to serve the admin API on alone")
	f.StringVar(&o.state, "state", "", "`folder` to keep the state in; without it, in memory")
	f.StringVar(&o.tlsDir, "tls", "entrasim-tls", "`folder` of the CA that clients trust (ca.pem); made if need be")
	f.StringVar(&o.cert, "cert", "", "`file` with a certificate to use instead of that CA's (with -key)")
	f.StringVar(&o.key, "key", "", "`file` with that certificate's key")
	f.StringVar(&o.names, "names", "", "more host `names`, by comma, for the certificate")
	f.StringVar(&o.base, "base-url", "", "`origin` clients use, as https://entra.test, when it is not that of -listen")
	f.StringVar(&o.domain, "domain", "", "`name` under which login, graph, management and admin are host names of their own")
	f.DurationVar(&o.journalLife, "journal-life", 0, "how long the journal remembers changes; 0s is for ever")
	f.StringVar(&o.issuerCA, "issuer-ca", "", "`file` of CA certificates to trust, besides the system's, in issuers of federated credentials")
	f.Uint64Var(&o.seed, "seed", 1, "`number` that decides everything random")
	f.IntVar(&o.replicas, "replicas", 3, "`number` of replicas of each plane")
	f.Var((*lags)(&o.lags), "lag", "replication lag, a fixed `duration` or shortest-longest, such as 0s-3s; by comma, one of a kind as above")
	f.Var(&o.life, "token-life", "life of access tokens, a fixed `duration` or shortest-longest")
	f.BoolVar(&o.secretFirst, "secret-before-principal", false, "check the secret before missing the principal")
	f.BoolVar(&o.race, "consent-race", false, "answer an early second consent with AADSTS650051")
	f.BoolVar(&o.lockAtHome, "lock-at-home", false, "have the property lock hold in an application's home tenant too")
	f.IntVar(&o.maxCredentials, "max-credentials", 0, "`number` of secrets and certificates that an application has room for, 600 when zero")
	f.BoolVar(&o.unlimited, "unlimited", false, "never throttle Graph and Resource Manager of their own accord")
	f.Float64Var(&o.conflicts.Probability, "conflicts", 0, "`probability` that two writes to one application conflict, at once or within -conflict-window")
	f.DurationVar(&o.conflicts.Window, "conflict-window", 0, "how long a write stands in the way of the next one to the same application")
	f.Float64Var(&o.conflicts.RemovalProbability, "removal-failures", 0, "`probability` that a password's removal fails within -conflict-window after an addition")
	f.Var(&o.loop, "login-loop", "`number/duration`, such as 20/1m, of equal token requests beyond which AADSTS50196 is answered")
	f.BoolVar(&o.openAdmin, "open-admin", false, "answer the admin API, which asks nobody who they are, to other machines too")
	f.BoolVar(&o.verbose, "verbose", false, "log more")
	return o, f
}

func parse(args []string, help io.Writer) (*options, error) {
	o, f := define(help)
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	if o.base != "" && o.domain != "" {
		return o, errors.New("-base-url and -domain exclude each other")
	}
	if (o.cert == "") != (o.key == "") {
		return o, errors.New("-cert and -key go together")
	}
	if o.life.low <= 0 {
		return o, errors.New("-token-life must be above zero")
	}
	return o, nil
}

// run serves until ctx ends.
func run(ctx context.Context, args []string, out, errOut io.Writer) (err error) {
	o, err := parse(args, errOut)
	if err != nil {
		return err
	}
	level := slog.LevelInfo
	if o.verbose {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(errOut, &slog.HandlerOptions{Level: level}))
	at, err := o.open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, at.close()) }()
	config, trust, err := o.tls(at)
	if err != nil {
		return err
	}
	if o.state != "" {
		if err := os.MkdirAll(o.state, 0o700); err != nil {
			return fmt.Errorf("make state folder: %w", err)
		}
	}
	issuers, err := o.issuers()
	if err != nil {
		return err
	}
	sim, err := entrasim.New(entrasim.Config{
		Seed: o.seed, StateDir: o.state, Replicas: o.replicas, Endpoints: at.endpoints(o), Log: log,
		Lags: o.lags, TokenLife: entrasim.Range{Min: o.life.low, Max: o.life.high},
		SecretBeforePrincipal: o.secretFirst, ConsentRace: o.race, LockAtHome: o.lockAtHome, MaxCredentials: o.maxCredentials,
		OpenAdmin: o.openAdmin, Issuers: issuers, JournalLife: o.journalLife,
		WriteConflicts: o.conflicts, LoginLoop: entrasim.Budget(o.loop), Budgets: entrasim.Budgets{Unlimited: o.unlimited},
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sim.Close()) }()
	e := sim.Endpoints()
	_, _ = fmt.Fprintf(out, "login             %s\ngraph             %s/v1.0\nresource manager  %s\nadmin             %s\ntrust             %s\n",
		e.Login, e.Graph, e.ResourceManager, e.Admin, trust)
	return at.serve(ctx, func(ctx context.Context, one place) error {
		return sim.RunPlane(ctx, one.plane, one.listener, config.Clone())
	})
}

// tls returns the server's configuration, and the file that clients trust.
func (o *options) tls(at places) (*tls.Config, string, error) {
	if o.cert != "" {
		pair, err := tls.LoadX509KeyPair(o.cert, o.key)
		if err != nil {
			return nil, "", fmt.Errorf("read certificate: %w", err)
		}
		return &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}}, "the issuer of " + o.cert, nil
	}
	names := []string{
		"localhost", "127.0.0.1", "::1", "login.microsoftonline.com", "graph.microsoft.com", "management.azure.com", "admin.entrasim.invalid",
	}
	for _, one := range at {
		if host, _, err := net.SplitHostPort(one.listener.Addr().String()); err == nil && !net.ParseIP(host).IsUnspecified() {
			names = append(names, host)
		}
	}
	if o.domain != "" {
		for _, plane := range []entrasim.Plane{entrasim.PlaneLogin, entrasim.PlaneGraph, entrasim.PlaneARM, entrasim.PlaneAdmin} {
			names = append(names, hostOf(plane)+"."+o.domain)
		}
	}
	if u, err := url.Parse(o.base); err == nil && u.Hostname() != "" {
		names = append(names, u.Hostname())
	}
	for name := range strings.SplitSeq(o.names, ",") {
		if name = strings.TrimSpace(name); name != "" {
			names = append(names, name)
		}
	}
	config, err := devtls.ServerConfig(o.tlsDir, time.Now(), names)
	return config, filepath.Join(o.tlsDir, devtls.CAFile), err
}

// issuers returns what carries requests to issuers, nil for the usual way.
func (o *options) issuers() (http.RoundTripper, error) {
	if o.issuerCA == "" {
		return nil, nil //nolint:nilnil // as entrasim.Config has it
	}
	text, err := os.ReadFile(o.issuerCA) //nolint:gosec // the path is the operator's choice
	if err != nil {
		return nil, fmt.Errorf("read issuers' CA: %w", err)
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		return nil, fmt.Errorf("read the system's CAs: %w", err)
	}
	if !roots.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("issuers' CA: %s holds no certificate", o.issuerCA)
	}
	return &http.Transport{
		Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, TLSHandshakeTimeout: 10 * time.Second, IdleConnTimeout: time.Minute,
		MaxIdleConns: 16, MaxResponseHeaderBytes: 1 << 16, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
	}, nil
}

// reachable is an address as a client on this machine would write it.
func reachable(addr net.Addr) string {
	host, port, err := net.SplitHostPort(addr.String())
	if err != nil {
		return addr.String()
	}
	if ip := net.ParseIP(host); ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port)
}

// span is a flag: one duration, or two with a hyphen between.
type span struct{ low, high time.Duration }

func (s *span) String() string {
	return s.low.String() + "-" + s.high.String()
}

func (s *span) Set(text string) error {
	low, high, two := strings.Cut(text, "-")
	if !two {
		high = low
	}
	var err error
	if s.low, err = time.ParseDuration(low); err != nil {
		return err
	}
	s.high, err = time.ParseDuration(high)
	return err
}

// lags is a flag: a span for all kinds of changes, spans for some kinds by their
// names, or both, by comma and in this order.
type lags entrasim.Lags

// kinds are the lags by the names that the flag has for them.
func (l *lags) kinds() map[string]*entrasim.Range {
	return map[string]*entrasim.Range{
		"graph": &l.Graph, "application": &l.Application, "secret": &l.Secret, "federated": &l.Federated,
		"principal": &l.Principal, "role": &l.Role, "removal": &l.Removal,
	}
}

func lagNames() []string {
	return slices.Sorted(maps.Keys(new(lags).kinds()))
}

func (l *lags) String() string {
	var out []string
	for name, of := range l.kinds() {
		if *of != (entrasim.Range{}) {
			out = append(out, name+"="+of.Min.String()+"-"+of.Max.String())
		}
	}
	slices.Sort(out)
	return strings.Join(out, ",")
}

func (l *lags) Set(text string) error {
	for part := range strings.SplitSeq(text, ",") {
		name, value, named := strings.Cut(part, "=")
		if !named {
			value = part
		}
		var s span
		if err := s.Set(value); err != nil {
			return err
		}
		one := entrasim.Range{Min: s.low, Max: s.high}
		of := l.kinds()[name]
		switch {
		case !named:
			*l = lags(entrasim.Lag(one.Min, one.Max))
		case of == nil:
			return fmt.Errorf("%q is none of %s", name, strings.Join(lagNames(), ", "))
		default:
			*of = one
		}
	}
	return nil
}

// rate is a flag: a number, a slash, and the time in which it comes back.
type rate entrasim.Budget

func (r *rate) String() string {
	return fmt.Sprintf("%d/%v", r.Amount, r.Per)
}

func (r *rate) Set(text string) error {
	amount, per, _ := strings.Cut(text, "/")
	var err error
	if r.Amount, err = strconv.Atoi(amount); err != nil {
		return err
	}
	r.Per, err = time.ParseDuration(per)
	return err
}
