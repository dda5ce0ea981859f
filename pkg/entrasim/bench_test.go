//go:build unix

package entrasim_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"phasekey.dev/pkg/entrasim"
	"phasekey.dev/pkg/entrasim/internal/devtls"
)

// BenchmarkToken is token requests from all cores: in process, and over TLS with
// connections that are kept, that are not, and by azidentity with a new
// credential each. It measures the clients' share too. The signature alone,
// which comes first, is the floor: it fails when a request in process takes more
// of the processor than two signatures do.
func BenchmarkToken(b *testing.B) {
	const most = 2
	var floor, inProcess time.Duration
	b.Run("signature_alone", func(b *testing.B) {
		sim, _ := benchmarked(b, entrasim.Config{})
		floor = benchmarkTokens(b, func() error { sim.Sign(); return nil })
	})
	b.Run("in_process", func(b *testing.B) {
		sim, p := benchmarked(b, entrasim.Config{})
		inProcess = benchmarkTokens(b, asker(sim, p, &http.Client{Transport: sim.Transport()}))
	})
	if floor > 0 && inProcess.Seconds() > most*floor.Seconds() {
		b.Errorf("a request takes %v of the processor, a signature %v", inProcess, floor)
	}
	b.Run("kept_connections", func(b *testing.B) {
		sim, p, config := benchmarkedServer(b)
		transport := &http.Transport{TLSClientConfig: config, MaxIdleConnsPerHost: 64}
		defer transport.CloseIdleConnections()
		benchmarkTokens(b, asker(sim, p, &http.Client{Transport: transport}))
	})
	b.Run("new_connections", func(b *testing.B) {
		sim, p, config := benchmarkedServer(b)
		benchmarkTokens(b, asker(sim, p, &http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}))
	})
	b.Run("azidentity", func(b *testing.B) {
		sim, p, config := benchmarkedServer(b)
		benchmarkTokens(b, func() error {
			transport := &http.Transport{TLSClientConfig: config}
			defer transport.CloseIdleConnections()
			c, err := azidentity.NewClientSecretCredential(homeID, p.ClientID, p.ClientSecret, &azidentity.ClientSecretCredentialOptions{
				DisableInstanceDiscovery: true,
				ClientOptions: azcore.ClientOptions{
					Transport: &http.Client{Transport: transport}, Cloud: cloud.Configuration{ActiveDirectoryAuthorityHost: sim.Endpoints().Login},
				},
			})
			if err != nil {
				return err
			}
			_, err = c.GetToken(b.Context(), policy.TokenRequestOptions{Scopes: []string{armScope}})
			return err
		})
	})
}

// benchmarkTokens calls ask from all cores, and returns what a token takes of
// the processor. On a machine that is shared that says more than how many there
// were in a second; two cores would make so many of them if nobody else used them.
func benchmarkTokens(b *testing.B, ask func() error) time.Duration {
	b.Helper()
	b.ReportAllocs()
	before := processorTime(b)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := ask(); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "tokens/s")
	took := (processorTime(b) - before) / time.Duration(b.N)
	b.ReportMetric(2/took.Seconds(), "tokens/s/2cores")
	return took
}

// processorTime is what this process has used so far, on all cores.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

func asker(sim *entrasim.Simulator, p entrasim.Platform, client *http.Client) func() error {
	form := credentials(p.ClientID, p.ClientSecret, armScope)
	return func() error {
		resp, err := client.PostForm(sim.Endpoints().Login+"/"+homeID+"/oauth2/v2.0/token", form)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, resp.Body)
		if resp.StatusCode != http.StatusOK {
			err = fmt.Errorf("status %d", resp.StatusCode)
		}
		return errors.Join(err, resp.Body.Close())
	}
}

func benchmarked(b *testing.B, config entrasim.Config) (*entrasim.Simulator, entrasim.Platform) {
	b.Helper()
	sim, err := entrasim.New(config)
	if err != nil {
		b.Fatal(err)
	}
	if _, err = sim.CreateTenant(entrasim.NewTenant{ID: homeID, Verified: true}); err != nil {
		b.Fatal(err)
	}
	p, err := sim.CreatePlatform(entrasim.NewPlatform{Tenant: homeID})
	if err != nil {
		b.Fatal(err)
	}
	return sim, p
}

func benchmarkedServer(b *testing.B) (*entrasim.Simulator, entrasim.Platform, *tls.Config) {
	b.Helper()
	dir := b.TempDir()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	secure, err := devtls.ServerConfig(dir, time.Now(), []string{"127.0.0.1"})
	if err != nil {
		b.Fatal(err)
	}
	sim, p := benchmarked(b, entrasim.Config{BaseURL: "https://" + listener.Addr().String()})
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- sim.Run(ctx, listener, secure) }()
	b.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			b.Error(err)
		}
	})
	ca, err := os.ReadFile(filepath.Join(dir, devtls.CAFile))
	if err != nil {
		b.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	return sim, p, &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool}
}
