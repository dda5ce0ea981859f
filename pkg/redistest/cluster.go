package redistest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"phasekey.dev/pkg/redisconn"
)

// Cluster starts a Redis Cluster of three masters, stopped when the test ends.
func Cluster(t testing.TB) *Redis {
	t.Helper()
	slots := []string{"0-5460", "5461-10922", "10923-16383"}
	r := &Redis{dial: dialTCP, config: redisconn.Config{Cluster: true}}
	for range slots {
		n := newNode(t, 6379, append([]string{"--cluster-enabled", "yes", "--cluster-node-timeout", "1000"}, volatile...)...)
		n.args = append(n.args, "--cluster-announce-ip", n.host()) // else they take the source of connections for it, which is 127.0.0.1
		r.nodes = append(r.nodes, n)
		r.config.Addrs = append(r.config.Addrs, n.address)
	}
	for _, n := range r.nodes {
		// They know each other from the start, as after a restart: getting acquainted takes them longer.
		var known strings.Builder
		for i, other := range r.nodes {
			flags := "master"
			if other == n {
				flags = "myself,master"
			}
			fmt.Fprintf(&known, "%040x %s@16379 %s - 0 0 %d connected %s\n", i+1, other.address, flags, i+1, slots[i])
		}
		known.WriteString("vars currentEpoch 3 lastVoteEpoch 0\n")
		if err := os.WriteFile(filepath.Join(n.folder, "nodes.conf"), []byte(known.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range r.nodes {
		n.start(t)
	}
	r.settle(t)
	return r
}

// settle waits until every node of a cluster says that it works.
func (r *Redis) settle(t testing.TB) {
	t.Helper()
	for _, n := range r.nodes {
		client := n.client()
		err := await(t, func(ctx context.Context) error {
			info, err := client.ClusterInfo(ctx).Result()
			if err == nil && !strings.Contains(info, "cluster_state:ok") {
				return fmt.Errorf("cluster: %s", info)
			}
			return err
		})
		_ = client.Close()
		if err != nil {
			t.Fatal(err)
		}
	}
}
