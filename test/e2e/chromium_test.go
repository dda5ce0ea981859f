package e2e

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// chromium is one window of a headless Chromium that trusts the certificates of a stack and no others beyond the usual, and
// runs no scripts unless it is told to.
type chromium struct {
	t   *testing.T
	ctx context.Context

	mu         sync.Mutex
	status     int64
	addresses  []string // of all pages that were asked for, redirections too
	complaints []string
}

// pins are the hashes of the public keys in certificate files, as Chromium wants them.
func pins(t *testing.T, files ...string) string {
	t.Helper()
	hashes := make([]string, len(files))
	for i, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(text)
		if block == nil {
			t.Fatalf("%s is no certificate", file)
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(certificate.RawSubjectPublicKeyInfo)
		hashes[i] = base64.StdEncoding.EncodeToString(sum[:])
	}
	return strings.Join(hashes, ",")
}

// openChromium starts a browser with a profile of its own, which ends with the test.
func openChromium(t *testing.T, d *dev) *chromium {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatalf("run 'make setup': %v", err)
	}
	tls := filepath.Join(d.dir, "tls")
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.WindowSize(900, 1100),
		chromedp.Flag("ignore-certificate-errors-spki-list", pins(t, filepath.Join(tls, "broker.pem"), filepath.Join(tls, "entra.pem"))),
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-gpu", true))
	if os.Geteuid() == 0 {
		options = append(options, chromedp.NoSandbox)
	}
	allocated, cancelAllocator := chromedp.NewExecAllocator(t.Context(), options...)
	t.Cleanup(cancelAllocator)
	window, cancelWindow := chromedp.NewContext(allocated)
	t.Cleanup(cancelWindow)
	return newWindow(t, window)
}

// newWindow makes a context of chromedp's the window of a test.
func newWindow(t *testing.T, ctx context.Context) *chromium { //nolint:revive // the context is what the window is made from
	t.Helper()
	c := &chromium{t: t, ctx: ctx}
	// The browser lives as long as the context of what it does first.
	if err := chromedp.Do(ctx, chromedp.Navigate("about:blank")); err != nil {
		t.Fatalf("chromium: %v", err)
	}
	c.listen()
	command(c, network.Enable, network.EnableParams{})
	command(c, cdplog.Enable, cdp.Empty{})
	command(c, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
	return c
}

// tab opens another window of the same browser, with the same cookies.
func (c *chromium) tab() *chromium {
	c.t.Helper()
	window, cancel := chromedp.NewContext(c.ctx)
	c.t.Cleanup(cancel)
	return newWindow(c.t, window)
}

// scripted has the window run scripts from now on.
func (c *chromium) scripted() *chromium {
	c.t.Helper()
	command(c, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: false})
	return c
}

// evaluate is what an expression of JavaScript's comes to, a promise when it is kept.
func evaluate[T any](c *chromium, expression string) T {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.ctx, 30*time.Second)
	defer cancel()
	value, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
	if err != nil {
		c.t.Fatalf("chromium: %v; it shows %q at %s", err, c.text(), c.path())
	}
	return value
}

// accessible fails the test for what axe-core finds wrong with the page.
func (c *chromium) accessible(name string) {
	c.t.Helper()
	axe, err := os.ReadFile(filepath.Join("..", "..", ".build", "node", "node_modules", "axe-core", "axe.min.js"))
	if err != nil {
		c.t.Fatalf("run 'make setup': %v", err)
	}
	found := evaluate[[]string](c, string(axe)+`;
		axe.run(document).then((found) => found.violations.flatMap((v) => v.nodes.map((n) => v.id + ": " + v.help + ": " + n.html)))`)
	for _, violation := range found {
		c.t.Errorf("page %s: %s", name, violation)
	}
}

// command sends the browser one of its protocol's.
func command[P any](c *chromium, send cdp.Command[P, cdp.Empty], params P) {
	c.t.Helper()
	if _, err := chromedp.Call(c.ctx, send, params); err != nil {
		c.t.Fatalf("chromium: %s: %v", send.Method, err)
	}
}

// listen takes in what the browser complains of, and the status of each page.
func (c *chromium) listen() {
	err := chromedp.Listen(c.ctx, func(event any) {
		c.mu.Lock()
		defer c.mu.Unlock()
		switch e := event.(type) {
		case *network.EventRequestWillBeSent:
			if e.Type == network.ResourceTypeDocument {
				c.addresses = append(c.addresses, e.Request.URL)
			}
		case *network.EventResponseReceived:
			if e.Type == network.ResourceTypeDocument {
				c.status = e.Response.Status
			}
		case *cdplog.EventEntryAdded:
			// A page that is an error is said here too; those are judged by their status.
			if !strings.Contains(e.Entry.Text, "Failed to load resource") {
				c.complaints = append(c.complaints, e.Entry.Text)
			}
		case *runtime.EventExceptionThrown:
			c.complaints = append(c.complaints, e.ExceptionDetails.Text)
		}
	})
	if err != nil {
		c.t.Fatalf("chromium: %v", err)
	}
}

// do does things in the window, within half a minute.
func (c *chromium) do(actions ...chromedp.Action[chromedp.Void]) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.ctx, 30*time.Second)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		c.t.Fatalf("chromium: %v; it shows %q at %s", err, c.text(), c.path())
	}
}

// open goes to an address and returns the page's status.
func (c *chromium) open(address string) int64 {
	c.t.Helper()
	c.do(chromedp.Navigate(address))
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status
}

// click presses a button and waits for the page that follows.
func (c *chromium) click(selector string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.ctx, 30*time.Second)
	defer cancel()
	_, err := chromedp.RunResponse(ctx, chromedp.Click(selector))
	if err != nil {
		c.t.Fatalf("chromium: click %s: %v; it shows %q", selector, err, c.text())
	}
}

// enter types into a field.
func (c *chromium) enter(selector, text string) {
	c.t.Helper()
	c.do(chromedp.SendKeys(selector, text))
}

// back presses the browser's button for that.
func (c *chromium) back() {
	c.t.Helper()
	c.do(chromedp.NavigateBack())
}

// visited are the addresses of pages whose path ends so, in the order in which they were asked for.
func (c *chromium) visited(path string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []string
	for _, address := range c.addresses {
		if before, _, _ := strings.Cut(address, "?"); strings.HasSuffix(before, path) {
			out = append(out, address)
		}
	}
	return out
}

// text is what the page has to read.
func (c *chromium) text() string {
	ctx, cancel := context.WithTimeout(c.ctx, 10*time.Second)
	defer cancel()
	text, err := chromedp.Run(ctx, chromedp.Text("body"))
	if err != nil {
		return fmt.Sprintf("nothing: %v", err)
	}
	return text
}

// location is the page's address, path its part that is no secret.
func (c *chromium) location() string {
	ctx, cancel := context.WithTimeout(c.ctx, 10*time.Second)
	defer cancel()
	at, err := chromedp.Run(ctx, chromedp.Location())
	if err != nil {
		return fmt.Sprintf("nowhere: %v", err)
	}
	return at
}

func (c *chromium) path() string {
	at, _, _ := strings.Cut(c.location(), "?")
	return at
}

// await waits until the page, which reloads itself, says something.
func (c *chromium) await(saying string) {
	c.t.Helper()
	c.until(saying, func() bool { return strings.Contains(c.text(), saying) })
}

// arrive waits until the window is at a page whose path ends so: one that sends browsers on may come before.
func (c *chromium) arrive(path string) {
	c.t.Helper()
	c.until(path, func() bool { return strings.HasSuffix(c.path(), path) })
}

func (c *chromium) until(what string, so func() bool) {
	c.t.Helper()
	deadline := time.NewTimer(45 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for !so() {
		select {
		case <-deadline.C:
			c.t.Fatalf("waited for %q; the window shows %q at %s", what, c.text(), c.path())
		case <-tick.C:
		}
	}
}

// screenshot keeps what the window shows as a picture, in .build/screenshots.
func (c *chromium) screenshot(name string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.ctx, 30*time.Second)
	defer cancel()
	png, err := chromedp.Run(ctx, chromedp.FullScreenshot(100))
	if err != nil {
		c.t.Fatal(err)
	}
	dir, err := filepath.Abs(filepath.Join("..", "..", ".build", "screenshots"))
	if err != nil {
		c.t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		c.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name+".png"), png, 0o644); err != nil {
		c.t.Fatal(err)
	}
}

// look sets how the window is: dark or light, and its width.
func (c *chromium) look(scheme string, width int64) {
	c.t.Helper()
	command(c, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
	})
	c.do(chromedp.EmulateViewport(width, 1100))
}

// noComplaints fails the test for what the browser has complained of, violations of the content security policy among it.
func (c *chromium) noComplaints() {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, complaint := range c.complaints {
		c.t.Errorf("the browser complains: %s", complaint)
	}
}
