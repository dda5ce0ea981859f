package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"

	"phasekey.dev/pkg/entrasim"
)

// place is where one plane, or all that have none of their own, are served.
type place struct {
	plane    entrasim.Plane // empty: all
	listener net.Listener
}

// places are the sockets of a command line, open.
type places []place

// own are the planes that can have an address of their own.
func (o *options) own() map[entrasim.Plane]string {
	return map[entrasim.Plane]string{
		entrasim.PlaneLogin: o.listenLogin, entrasim.PlaneGraph: o.listenGraph, entrasim.PlaneARM: o.listenARM, entrasim.PlaneAdmin: o.listenAdmin,
	}
}

// open opens the sockets: those of single planes, and one for all planes unless
// each has its own.
func (o *options) open() (places, error) {
	var out places // the one for all planes comes last
	missing := false
	for plane, address := range o.own() {
		if address == "" {
			missing = true
			continue
		}
		if err := out.listen(plane, address); err != nil {
			return nil, errors.Join(err, out.close())
		}
	}
	if !missing {
		return out, nil
	}
	if err := out.listen("", o.listen); err != nil {
		return nil, errors.Join(err, out.close())
	}
	return out, nil
}

func (p *places) listen(plane entrasim.Plane, address string) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	*p = append(*p, place{plane, listener})
	return nil
}

// close closes what serving has not closed.
func (p places) close() error {
	var errs []error
	for _, at := range p {
		if err := at.listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// origin is how a plane is reached.
func (p places) origin(plane entrasim.Plane, o *options) string {
	var at place
	for _, one := range p {
		if one.plane == plane || (one.plane == "" && at.listener == nil) {
			at = one
		}
	}
	if at.plane == "" && o.base != "" {
		return strings.TrimSuffix(o.base, "/")
	}
	address := reachable(at.listener.Addr())
	if o.domain == "" {
		return "https://" + address
	}
	name := hostOf(plane) + "." + o.domain
	if _, port, err := net.SplitHostPort(address); err == nil && port != "443" {
		name = net.JoinHostPort(name, port)
	}
	return "https://" + name
}

// hostOf is the first part of a plane's host name, by which it is told apart.
func hostOf(plane entrasim.Plane) string {
	if plane == entrasim.PlaneARM {
		return "management"
	}
	return string(plane)
}

func (p places) endpoints(o *options) entrasim.Endpoints {
	return entrasim.Endpoints{
		Login: p.origin(entrasim.PlaneLogin, o), Graph: p.origin(entrasim.PlaneGraph, o),
		ResourceManager: p.origin(entrasim.PlaneARM, o), Admin: p.origin(entrasim.PlaneAdmin, o) + "/admin",
	}
}

// serve runs run at every place until ctx ends or one fails, which ends them all.
func (p places) serve(ctx context.Context, run func(context.Context, place) error) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	errs := make([]error, len(p))
	var all sync.WaitGroup
	for i, at := range p {
		all.Go(func() {
			errs[i] = run(ctx, at)
			stop()
		})
	}
	all.Wait()
	return errors.Join(errs...)
}
