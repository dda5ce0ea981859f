// Package loopback says which addresses do not leave this machine: the one rule by which plaintext and missing passwords are
// tolerated anywhere.
//
// It looks at how an address is written and resolves nothing, for a name may resolve to another machine tomorrow. The one name
// it takes is localhost, which RFC 6761 keeps for loopback.
package loopback

import (
	"net"
	"net/netip"
	"strings"
)

// Host reports whether a host is this machine: a loopback IP address, localhost, or a Unix socket, which is a path or, in
// Linux's abstract namespace, begins with @.
func Host(host string) bool {
	if strings.HasPrefix(host, "/") || strings.HasPrefix(host, "@") || host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

// Address is Host for an address with a port, as of net.Addr's String; Unix sockets have none.
func Address(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = address
	}
	return Host(host)
}
