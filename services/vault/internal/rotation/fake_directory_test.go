package rotation_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"phasekey.dev/pkg/secret"
	"phasekey.dev/services/vault/internal/directory"
)

const (
	homeTenant = "home"
	// canary begins every secret text.
	canary = "canary-"
)

// fakeDirectory is an Entra ID whose replicas lag and disagree, in fake time.
type fakeDirectory struct {
	mu   sync.Mutex
	rand *rand.Rand
	// lag is how long at most an application or password takes to reach every replica.
	lag       time.Duration
	apps      map[string]*fakeApp
	consented bool
	// before and after are called around each request's effect, without the lock; an error from either is the answer.
	before, after func(ctx context.Context, op string) error
	// intended is called with the name of each password that is asked for, before it is made; nil asks nobody.
	intended   func(name string)
	journal    []string
	requestIDs map[string]bool
	grants     map[string]int // by key, in the customer's tenant
	calls      map[string]int
	// federation is what it knows of an issuer; nil while there is none.
	federation *fakeFederation
}

type fakeApp struct {
	object    string
	spec      directory.Spec
	visible   time.Time
	passwords map[string]*fakePassword
	trusts    map[string]*fakeTrust
	deleted   bool
	binned    time.Time // when every replica knows that it was deleted
	purged    bool
}

type fakePassword struct {
	directory.Password
	text    string
	visible time.Time
}

func newFakeDirectory() *fakeDirectory {
	return &fakeDirectory{
		rand: rand.New(rand.NewPCG(1, 2)), apps: map[string]*fakeApp{}, requestIDs: map[string]bool{}, grants: map[string]int{}, calls: map[string]int{},
	}
}

func (d *fakeDirectory) HomeTenantID() string    { return homeTenant }
func (d *fakeDirectory) ResourceManager() string { return "https://rm.example" }

// around runs one request.
func (d *fakeDirectory) around(ctx context.Context, op string, effect func() error) error {
	d.mu.Lock()
	d.calls[op]++
	before, after := d.before, d.after
	d.mu.Unlock()
	if before != nil {
		if err := before(ctx, op); err != nil {
			return err
		}
	}
	d.mu.Lock()
	err := effect()
	d.mu.Unlock()
	if err != nil {
		return err
	}
	if after != nil {
		return after(ctx, op)
	}
	return ctx.Err()
}

func (d *fakeDirectory) note(format string, args ...any) {
	d.journal = append(d.journal, fmt.Sprintf(format, args...))
}

func (d *fakeDirectory) some() time.Time {
	if d.lag == 0 {
		return time.Now()
	}
	return time.Now().Add(time.Duration(d.rand.Int64N(int64(d.lag))))
}

// knows is the answer of whichever replica is asked.
func (d *fakeDirectory) knows(visible time.Time) bool {
	return !time.Now().Before(visible) || d.rand.IntN(3) == 0
}

func refuse(class directory.Class, code string) error {
	return &directory.Error{Op: "fake", Class: class, Code: code, Err: errors.New("refused")}
}

func (d *fakeDirectory) byObject(object string) (*fakeApp, error) {
	for _, app := range d.apps {
		if app.object == object && !app.deleted {
			return app, nil
		}
	}
	return nil, refuse(directory.NotFound, "Request_ResourceNotFound")
}

func (app *fakeApp) entity() directory.Application {
	out := directory.Application{ObjectID: app.object, ClientID: "client-" + app.object, DisplayName: app.spec.DisplayName}
	for _, key := range slices.Sorted(maps.Keys(app.passwords)) {
		out.Passwords = append(out.Passwords, app.passwords[key].Password)
	}
	for _, name := range slices.Sorted(maps.Keys(app.trusts)) {
		if t := app.trusts[name]; t.removed.IsZero() {
			out.Trusts = append(out.Trusts, t.Trust)
		}
	}
	return out
}

func (d *fakeDirectory) EnsureApplication(ctx context.Context, spec directory.Spec) (out directory.Application, err error) {
	err = d.around(ctx, "ensure", func() error {
		app := d.apps[spec.UniqueName]
		if app == nil || app.deleted {
			app = &fakeApp{object: uuid.NewString(), visible: d.some(), passwords: map[string]*fakePassword{}, trusts: map[string]*fakeTrust{}}
			d.apps[spec.UniqueName] = app
			d.note("made")
		}
		app.spec = spec
		out = app.entity()
		return nil
	})
	return out, err
}

func (d *fakeDirectory) RepairApplication(ctx context.Context, spec directory.Spec) (out directory.Application, err error) {
	err = d.around(ctx, "ensure", func() error {
		app := d.apps[spec.UniqueName]
		if app == nil || app.deleted || !d.knows(app.visible) {
			return refuse(directory.NotFound, "Request_ResourceNotFound")
		}
		app.spec = spec
		out = app.entity()
		return nil
	})
	return out, err
}

func (d *fakeDirectory) FindApplication(ctx context.Context, uniqueName string) (out directory.Application, err error) {
	err = d.around(ctx, "find", func() error {
		app := d.apps[uniqueName]
		if app == nil || app.deleted || !d.knows(app.visible) {
			return refuse(directory.NotFound, "Request_ResourceNotFound")
		}
		out = app.entity()
		return nil
	})
	return out, err
}

func (d *fakeDirectory) AddPassword(ctx context.Context, objectID, displayName string, end time.Time) (out directory.Password, text secret.Text, err error) {
	if d.intended != nil {
		d.intended(displayName)
	}
	err = d.around(ctx, "add", func() error {
		app, err := d.byObject(objectID)
		if err != nil {
			return err
		}
		p := &fakePassword{
			Password: directory.Password{KeyID: uuid.NewString(), DisplayName: displayName, StartTime: time.Now(), EndTime: end},
			text:     canary + uuid.NewString(), visible: d.some(),
		}
		app.passwords[p.KeyID] = p
		d.note("added")
		out, text = p.Password, secret.New(p.text)
		return nil
	})
	if err != nil {
		return directory.Password{}, secret.Text{}, err
	}
	return out, text, nil
}

func (d *fakeDirectory) RemovePassword(ctx context.Context, objectID, keyID string) error {
	return d.around(ctx, "remove", func() error {
		app, err := d.byObject(objectID)
		if err != nil {
			return err
		}
		delete(app.passwords, keyID)
		d.note("removed")
		return nil
	})
}

func (d *fakeDirectory) DeleteApplication(ctx context.Context, objectID string) error {
	return d.around(ctx, "delete", func() error {
		app, err := d.byObject(objectID)
		if err != nil {
			return err
		}
		app.deleted, app.binned = true, d.some()
		d.note("deleted")
		return nil
	})
}

func (d *fakeDirectory) PurgeApplication(ctx context.Context, objectID string) error {
	return d.around(ctx, "purge", func() error {
		for _, app := range d.apps {
			if app.object == objectID && app.deleted && !app.purged && d.knows(app.binned) {
				app.purged = true
				d.note("purged")
				return nil
			}
		}
		return refuse(directory.NotFound, "Request_ResourceNotFound")
	})
}

func (d *fakeDirectory) Token(ctx context.Context, r directory.TokenRequest) (out directory.Token, err error) {
	err = d.around(ctx, "token", func() error {
		if d.requestIDs[r.RequestID] || r.RequestID == "" {
			d.note("request ID used again")
		}
		d.requestIDs[r.RequestID] = true
		var app *fakeApp
		for _, a := range d.apps {
			if "client-"+a.object == r.ClientID && !a.deleted {
				app = a
			}
		}
		switch {
		case app == nil || r.TenantID == homeTenant && !d.knows(app.visible):
			return refuse(directory.ApplicationUnknown, "AADSTS700016")
		case r.TenantID == homeTenant:
			return refuse(directory.PrincipalMissing, "AADSTS7000229")
		case !d.consented:
			return refuse(directory.ApplicationUnknown, "AADSTS700016")
		}
		if r.Assertion.Expose() != "" {
			out, err = d.exchange(app, r.Assertion.Expose())
			return err
		}
		for _, p := range app.passwords {
			switch {
			case p.text != r.Secret.Expose():
			case !d.knows(p.visible):
				return refuse(directory.SecretRefused, "AADSTS7000215")
			case !time.Now().Before(p.EndTime):
				return refuse(directory.SecretExpired, "AADSTS7000222")
			default:
				d.grants[p.KeyID]++
				out = directory.Token{Text: secret.New(canary + "token"), IssueTime: time.Now(), ExpireTime: time.Now().Add(time.Hour), PrincipalObjectID: "principal"}
				return nil
			}
		}
		return refuse(directory.SecretRefused, "AADSTS7000215")
	})
	if err != nil {
		return directory.Token{}, err
	}
	return out, nil
}

// set changes the fake.
func (d *fakeDirectory) set(change func(d *fakeDirectory)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change(d)
}

func (d *fakeDirectory) count(op string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.calls[op]
}

// granted is how many tokens were given for a password in the customer's tenant.
func (d *fakeDirectory) granted(key string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.grants[key]
}

// happened is what changed, in order.
func (d *fakeDirectory) happened() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.journal)
}

// keys are the passwords of all applications that are not deleted.
func (d *fakeDirectory) keys() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []string
	for _, app := range d.apps {
		if !app.deleted {
			out = append(out, slices.Collect(maps.Keys(app.passwords))...)
		}
	}
	slices.Sort(out)
	return out
}

// works reports whether a token could be had at every replica with the password.
func (d *fakeDirectory) works(key string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, app := range d.apps {
		if p := app.passwords[key]; p != nil && !app.deleted {
			return !time.Now().Before(p.visible) && time.Now().Before(p.EndTime)
		}
	}
	return false
}
