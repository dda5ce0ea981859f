package redisconn_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"

	"phasekey.dev/pkg/redisconn"
	"phasekey.dev/pkg/redistest"
)

func TestConfig_Validate(t *testing.T) {
	for _, test := range []struct {
		name   string
		config redisconn.Config
		ok     bool
	}{
		{"a socket", redisconn.Config{Addrs: []string{"/run/redis.sock"}}, true},
		{"loopback", redisconn.Config{Addrs: []string{"127.0.0.1:6379"}}, true},
		{"loopback of version six", redisconn.Config{Addrs: []string{"[::1]:6379"}}, true},
		{"secured", redisconn.Config{Addrs: []string{"redis.example:6379"}, TLS: true, PasswordFile: "p"}, true},
		{"sentinels", redisconn.Config{Addrs: []string{"a.example:1", "b.example:1"}, MasterName: "m", TLS: true, PasswordFile: "p", SentinelPasswordFile: "s"}, true},
		{"sentinels without a password", redisconn.Config{Addrs: []string{"a.example:1"}, MasterName: "m", TLS: true, PasswordFile: "p"}, false},
		{"no address", redisconn.Config{}, false},
		{"plaintext", redisconn.Config{Addrs: []string{"redis.example:6379"}, PasswordFile: "p"}, false},
		{"no password", redisconn.Config{Addrs: []string{"redis.example:6379"}, TLS: true}, false},
		{"one of several in plaintext", redisconn.Config{Addrs: []string{"127.0.0.1:6379", "10.0.0.1:6379"}, Cluster: true}, false},
		{"all addresses of the machine", redisconn.Config{Addrs: []string{"0.0.0.0:6379"}}, false},
		{"not an address", redisconn.Config{Addrs: []string{"localhost"}}, false},
		{"several, of what kind", redisconn.Config{Addrs: []string{"127.0.0.1:1", "127.0.0.1:2"}}, false},
		{"a database in a cluster", redisconn.Config{Addrs: []string{"127.0.0.1:1"}, Cluster: true, DB: 1}, false},
		{"a certificate without tls", redisconn.Config{Addrs: []string{"127.0.0.1:1"}, CAFile: "ca"}, false},
		{"half a certificate", redisconn.Config{Addrs: []string{"127.0.0.1:1"}, TLS: true, CertFile: "cert"}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			if err := test.config.Validate(); (err == nil) != test.ok {
				t.Errorf("got %v, want ok = %v", err, test.ok)
			}
		})
	}
}

func TestOpen_ReachesAServer(t *testing.T) {
	config := redistest.Server(t).Config()
	client, err := redisconn.Open(config)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	if err := client.Ping(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	if err := client.ConfigSet(t.Context(), "requirepass", "first").Err(); err != nil {
		t.Fatal(err)
	}
	config.PasswordFile = filepath.Join(t.TempDir(), "password")
	if _, err := redisconn.Open(config); err == nil {
		t.Error("opened without the password file it names")
	}
	for _, password := range []string{"first", "wrong"} {
		if err := os.WriteFile(config.PasswordFile, []byte(password+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		client, err := redisconn.Open(config)
		if err != nil {
			t.Fatal(err)
		}
		err = client.Ping(t.Context()).Err()
		if (err == nil) != (password == "first") {
			t.Errorf("password %q: %v", password, err)
		}
		_ = client.Close()
	}
}

// The password reaches every server, also those that are only named by others; the Sentinels have one of their own.
func TestOpen_ReachesServersBehindOthers(t *testing.T) {
	for _, test := range []struct {
		name   string
		config redisconn.Config
	}{
		{"sentinel", redistest.Sentinel(t).Config()},
		{"cluster", redistest.Cluster(t).Config()},
	} {
		t.Run(test.name, func(t *testing.T) {
			config := test.config
			open := func() redis.UniversalClient {
				t.Helper()
				client, err := redisconn.Open(config)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = client.Close() })
				return client
			}
			if config.MasterName != "" {
				sentinel := redis.NewClient(&redis.Options{Addr: config.Addrs[0]})
				defer func() { _ = sentinel.Close() }()
				if err := sentinel.Do(t.Context(), "ACL", "SETUSER", "default", ">sentinel").Err(); err != nil {
					t.Fatal(err)
				}
				config.SentinelPasswordFile = filepath.Join(t.TempDir(), "sentinel")
				if err := os.WriteFile(config.SentinelPasswordFile, []byte("sentinel"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			lock := func(ctx context.Context, node redis.UniversalClient) error {
				return node.ConfigSet(ctx, "requirepass", "server").Err()
			}
			first, err := open(), error(nil)
			if cluster, ok := first.(*redis.ClusterClient); ok {
				err = cluster.ForEachMaster(t.Context(), func(ctx context.Context, node *redis.Client) error { return lock(ctx, node) })
			} else {
				err = lock(t.Context(), first)
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := open().Set(t.Context(), "key", "value", 0).Err(); err == nil {
				t.Error("written without a password, so this tests nothing")
			}
			config.PasswordFile = filepath.Join(t.TempDir(), "password")
			if err := os.WriteFile(config.PasswordFile, []byte("server"), 0o600); err != nil {
				t.Fatal(err)
			}
			client := open()
			for i := range 10 { // in a cluster, at all nodes
				if err := client.Set(t.Context(), fmt.Sprint("key", i), "value", 0).Err(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// A Sentinel on this machine may name a master that is not; it is not spoken to in plaintext.
func TestOpen_DoesNotFollowIntoPlaintext(t *testing.T) {
	sentinel := fakeSentinel(t, "192.0.2.1", "6379")
	client, err := redisconn.Open(redisconn.Config{Addrs: []string{sentinel}, MasterName: "main"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	if err := client.Ping(t.Context()).Err(); !errors.Is(err, redisconn.ErrInsecure) {
		t.Errorf("got %v, want ErrInsecure", err)
	}
}

// fakeSentinel answers every request as a Sentinel answers for the address of the master.
func fakeSentinel(t *testing.T, host, port string) (addr string) {
	t.Helper()
	mini, err := server.NewServer("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(mini.Close)
	if err := mini.Register("CLIENT", func(peer *server.Peer, _ string, _ []string) { peer.WriteOK() }); err != nil {
		t.Fatal(err)
	}
	err = mini.Register("SENTINEL", func(peer *server.Peer, _ string, args []string) {
		if args[0] == "get-master-addr-by-name" {
			peer.WriteStrings([]string{host, port})
			return
		}
		peer.WriteLen(0)
	})
	if err != nil {
		t.Fatal(err)
	}
	return mini.Addr().String()
}
