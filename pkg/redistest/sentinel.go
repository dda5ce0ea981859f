package redistest

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

	"phasekey.dev/pkg/redisconn"
)

// Failover is a Redis with a replica, and a Sentinel that makes the replica the master when that is gone, or when it is told to.
type Failover struct {
	*Redis
	master, replica, sentinel *node
}

// masterName is the name by which the Sentinel knows the master.
const masterName = "main"

// Sentinel starts a master, its replica and their Sentinel, stopped when the test ends.
func Sentinel(t testing.TB) *Failover {
	t.Helper()
	f := &Failover{master: newNode(t, 6379, volatile...), replica: newNode(t, 6379, volatile...), sentinel: newNode(t, 26379)}
	f.master.args = append(f.master.args, "--repl-diskless-sync-delay", "0")
	f.master.start(t)
	f.replica.args = append(f.replica.args, "--replicaof", f.master.host()+" 6379", "--replica-announce-ip", f.replica.host(),
		"--repl-diskless-load", "on-empty-db")
	f.replica.start(t)
	path := filepath.Join(f.sentinel.folder, "sentinel.conf")
	text := fmt.Sprintf(`sentinel monitor %[1]s %[2]s 6379 1
sentinel down-after-milliseconds %[1]s 400
sentinel failover-timeout %[1]s 2000
sentinel known-replica %[1]s %[3]s 6379
`, masterName, f.master.host(), f.replica.host())
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	f.sentinel.args = append([]string{path, "--sentinel"}, f.sentinel.args...)
	f.sentinel.start(t)
	f.Redis = &Redis{
		dial: dialTCP,
		config: redisconn.Config{
			Addrs: []string{net.JoinHostPort(f.sentinel.host(), "26379")}, MasterName: masterName,
		},
		nodes: []*node{f.master, f.replica},
	}
	return f
}

// Deafen has the replica hear nothing more of what is written to the master. What was written before it has heard of.
func (f *Failover) Deafen(t testing.TB) {
	t.Helper()
	f.master.order(t, "WAIT", 1, 0)
	f.replica.order(t, "CONFIG", "SET", "masteruser", "nobody")
	f.replica.order(t, "CONFIG", "SET", "masterauth", "wrong")
	f.master.order(t, "CLIENT", "KILL", "TYPE", "REPLICA")
}

// FailOver tells the Sentinel to make the replica the master, and returns when it has begun.
func (f *Failover) FailOver(t testing.TB) {
	t.Helper()
	f.sentinel.order(t, "SENTINEL", "FAILOVER", masterName)
}

// KillMaster kills the master; the Sentinel will notice.
func (f *Failover) KillMaster(t testing.TB) {
	t.Helper()
	f.master.kill(t)
}
