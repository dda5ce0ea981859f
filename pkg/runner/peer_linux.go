package runner

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// errNoPeer is returned when the kernel does not list the other end of a connection.
var errNoPeer = errors.New("no such connection in this network namespace")

// peerUID asks the kernel which user owns the other end of a loopback connection: the socket whose own address is peer
// and whose other end is local. A program that prefers IPv6 sockets stands in the second file.
func peerUID(local, peer netip.AddrPort) (int, error) {
	for _, name := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		uid, err := findSocket(name, peer, local)
		if err == nil || !errors.Is(err, errNoPeer) && !errors.Is(err, os.ErrNotExist) {
			return uid, err
		}
	}
	return 0, errNoPeer
}

// findSocket returns the owner of the socket with these two addresses.
func findSocket(name string, own, remote netip.AddrPort) (int, error) {
	f, err := os.Open(name) //nolint:gosec // one of two constants
	if err != nil {
		return 0, fmt.Errorf("find a connection's owner: %w", err)
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid …
		fields := strings.Fields(lines.Text())
		if len(fields) < 8 || !sameAddress(fields[1], own) || !sameAddress(fields[2], remote) {
			continue
		}
		uid, err := strconv.Atoi(fields[7])
		if err != nil {
			return 0, fmt.Errorf("find a connection's owner in %s: %w", name, err)
		}
		return uid, nil
	}
	if err := lines.Err(); err != nil {
		return 0, fmt.Errorf("find a connection's owner: %w", err)
	}
	return 0, errNoPeer
}

// sameAddress compares the kernel's way of writing an address ("0100007F:1F90": 32-bit words in the machine's byte order,
// the port in hexadecimal) with one.
func sameAddress(field string, want netip.AddrPort) bool {
	address, port, ok := strings.Cut(field, ":")
	if !ok {
		return false
	}
	p, err := strconv.ParseUint(port, 16, 16)
	if err != nil || uint16(p) != want.Port() {
		return false
	}
	raw, err := hex.DecodeString(address)
	if err != nil || len(raw)%4 != 0 {
		return false
	}
	for i := 0; i < len(raw); i += 4 {
		binary.BigEndian.PutUint32(raw[i:], binary.NativeEndian.Uint32(raw[i:]))
	}
	got, ok := netip.AddrFromSlice(raw)
	return ok && got.Unmap() == want.Addr().Unmap()
}
