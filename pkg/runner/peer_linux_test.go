package runner

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
)

// OwnedBy makes the endpoint another user's.
func (l *Loopback) OwnedBy(uid int) { l.owner = uid }

func TestPeerUID(t *testing.T) {
	ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	local := netip.MustParseAddrPort(ln.Addr().String())

	t.Run("an IPv4 socket", func(t *testing.T) {
		conn, err := new(net.Dialer).DialContext(t.Context(), "tcp4", local.String())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		uid, err := peerUID(local, netip.MustParseAddrPort(conn.LocalAddr().String()))
		if err != nil || uid != os.Getuid() {
			t.Errorf("got %d, %v", uid, err)
		}
	})
	t.Run("an IPv6 socket that leads to IPv4", func(t *testing.T) {
		fd, err := syscall.Socket(syscall.AF_INET6, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = syscall.Close(fd) }()
		to := &syscall.SockaddrInet6{Port: int(local.Port()), Addr: netip.MustParseAddr("::ffff:127.0.0.1").As16()}
		if err := syscall.Connect(fd, to); err != nil {
			t.Fatal(err)
		}
		from, err := syscall.Getsockname(fd)
		if err != nil {
			t.Fatal(err)
		}
		own, ok := from.(*syscall.SockaddrInet6)
		if !ok {
			t.Fatalf("address %T", from)
		}
		uid, err := peerUID(local, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(own.Port)))
		if err != nil || uid != os.Getuid() {
			t.Errorf("got %d, %v", uid, err)
		}
	})
	t.Run("nobody", func(t *testing.T) {
		if uid, err := peerUID(local, netip.MustParseAddrPort("127.0.0.1:1")); !errors.Is(err, errNoPeer) {
			t.Errorf("got %d, %v", uid, err)
		}
	})
}

func TestMayAsk(t *testing.T) {
	for _, tt := range []struct {
		owner, uid int
		want       bool
	}{{1000, 1000, true}, {1000, 0, true}, {1000, 1001, false}, {0, 1000, false}} {
		if got := mayAsk(tt.owner, tt.uid); got != tt.want {
			t.Errorf("mayAsk(%d, %d) = %t", tt.owner, tt.uid, got)
		}
	}
}
