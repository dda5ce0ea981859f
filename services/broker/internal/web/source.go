package web

import (
	"context"
	"net/http"
	"net/netip"
	"strings"

	"phasekey.dev/pkg/limit"
)

// forwardedFor is where proxies say whom they speak for, each adding to the right whom it was spoken to by.
const forwardedFor = "X-Forwarded-For"

// Proxies are the networks of those in front of the pages whose word on whom they speak for is taken.
type Proxies []netip.Prefix

// has reports whether an address is one of theirs.
func (p Proxies) has(ip netip.Addr) bool {
	for _, network := range p {
		if network.Contains(ip) {
			return true
		}
	}
	return false
}

// trusts reports whether a connection from an address (host and port) is one of theirs.
func (p Proxies) trusts(address string) bool {
	at, err := netip.ParseAddrPort(address)
	return err == nil && p.has(at.Addr().Unmap())
}

// client is the address of the browser that asks: whoever connects, unless that is a trusted proxy. Then it is the rightmost address
// that no trusted proxy has, for what stands to the left of that anybody may have written. Where something else than an address stands,
// the proxy that passed it on is the client.
func (p Proxies) client(r *http.Request) string {
	at, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil || !p.has(at.Addr().Unmap()) {
		return r.RemoteAddr
	}
	client := at
	// Several headers are one list.
	hops := strings.Split(strings.Join(r.Header.Values(forwardedFor), ","), ",")
	for i := len(hops) - 1; i >= 0; i-- {
		hop, ok := parseHop(strings.TrimSpace(hops[i]))
		if !ok {
			break
		}
		client = hop
		if !p.has(hop.Addr()) {
			break
		}
	}
	return client.String()
}

// parseHop reads an entry of the list: an address, which some proxies write with a port.
func parseHop(text string) (netip.AddrPort, bool) {
	if at, err := netip.ParseAddrPort(text); err == nil {
		return netip.AddrPortFrom(at.Addr().Unmap().WithZone(""), at.Port()), true
	}
	ip, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(text, "["), "]"))
	if err != nil {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(ip.Unmap().WithZone(""), 0), true
}

// clientKey is under which a request's context has its client's address.
type clientKey struct{}

func withClient(ctx context.Context, address string) context.Context {
	return context.WithValue(ctx, clientKey{}, address)
}

// clientOf is the address of the browser that asks.
func clientOf(r *http.Request) string {
	address, _ := r.Context().Value(clientKey{}).(string)
	return address
}

// sourceOf is what that address counts as.
func sourceOf(r *http.Request) string { return limit.Source(clientOf(r)) }
