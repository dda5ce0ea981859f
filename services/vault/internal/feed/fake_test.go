package feed_test

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
	typev1 "phasekey.dev/gen/phasekey/type/v1"
)

const (
	// pageSize and bookmarkEvery are the registry's own.
	pageSize      = 2
	bookmarkEvery = 5 * time.Second
)

// fakeRegistry is a registry in memory that remembers what it had at each revision. It is the generated clients too.
type fakeRegistry struct {
	registryv1.IntegrationServiceClient
	registryv1.ProjectServiceClient
	registryv1.AttachmentServiceClient

	mu          sync.Mutex
	incarnation string
	revision    int64
	floor       int64 // changes up to here are forgotten
	wanted      map[string]*registryv1.Event
	log         []*registryv1.Event
	history     map[string][][]string // by position; a restored database has a position twice
	wake        chan struct{}
	made        int // resources, for UIDs

	dice    *rand.Rand
	disturb bool // change something between pages, and send messages of any size

	batch   int                           // the most changes of a message
	between map[int]func(r *fakeRegistry) // by number of pages read
	pages   int
	watches int
	streams int // the number of the newest one that was cut
	cause   error
	down    bool // nothing is answered
	hang    bool // lists are answered when the caller gives up
	mute    bool // streams say nothing
	stuck   bool // streams that there are say nothing, ever
}

func newRegistry() *fakeRegistry {
	r := &fakeRegistry{
		incarnation: "r", wanted: map[string]*registryv1.Event{}, history: map[string][][]string{}, wake: make(chan struct{}), batch: 100,
		dice: rand.New(rand.NewPCG(1, 1)),
	}
	r.remember()
	return r
}

func position(incarnation string, revision int64) string {
	return fmt.Sprintf("%s/%d", incarnation, revision)
}

func deleting(i *registryv1.Integration) { i.State = registryv1.Integration_STATE_DELETING }

func integration(uid, id string, with ...func(*registryv1.Integration)) *registryv1.Event {
	i := &registryv1.Integration{Uid: uid, Name: "accounts/a/integrations/" + id}
	for _, f := range with {
		f(i)
	}
	return &registryv1.Event{Resource: &registryv1.Event_Integration{Integration: i}}
}

func project(uid, id string, labels ...string) *registryv1.Event {
	return &registryv1.Event{Resource: &registryv1.Event_Project{Project: &registryv1.Project{Uid: uid, Name: "accounts/a/projects/" + id, Labels: labels}}}
}

func attachment(uid, integration, project string, accesses ...typev1.Access) *registryv1.Event {
	return &registryv1.Event{Resource: &registryv1.Event_Attachment{Attachment: &registryv1.Attachment{
		Uid: uid, Name: "accounts/a/projects/" + project + "/attachments/" + integration, IntegrationUid: integration, ProjectUid: project, Accesses: accesses}}}
}

// keys are an event's UID and name.
func keys(e *registryv1.Event) (uid, name string) {
	switch r := e.GetResource().(type) {
	case *registryv1.Event_Integration:
		return r.Integration.GetUid(), r.Integration.GetName()
	case *registryv1.Event_Project:
		return r.Project.GetUid(), r.Project.GetName()
	case *registryv1.Event_Attachment:
		return r.Attachment.GetUid(), r.Attachment.GetName()
	}
	return "", ""
}

// row is how the vault's database has a resource.
func row(e *registryv1.Event) string {
	bit := map[bool]int{true: 1}
	uid, name := keys(e)
	switch r := e.GetResource().(type) {
	case *registryv1.Event_Integration:
		period := 24 * time.Hour
		if r.Integration.GetRotationPeriod() != nil {
			period = r.Integration.GetRotationPeriod().AsDuration()
		}
		audiences := "[]"
		if all := r.Integration.GetAllowedAudiences(); len(all) > 0 {
			audiences = `["` + strings.Join(all, `","`) + `"]`
		}
		return fmt.Sprintf("%s %s %s %s %s %d %d 1", uid, name, r.Integration.GetDisplayName(), cmp.Or(r.Integration.GetCloud(), "public"),
			audiences, period.Microseconds(), bit[r.Integration.GetState() == registryv1.Integration_STATE_DELETING])
	case *registryv1.Event_Project:
		return uid + " " + name + " 1"
	case *registryv1.Event_Attachment:
		a := r.Attachment
		gives := func(access typev1.Access) int {
			return bit[len(a.GetAccesses()) == 0 || slices.Contains(a.GetAccesses(), access)]
		}
		return fmt.Sprintf("%s %s %s %d %d %s", uid, a.GetIntegrationUid(), a.GetProjectUid(),
			gives(typev1.Access_ACCESS_READ), gives(typev1.Access_ACCESS_WRITE), a.GetSubscriptionId())
	}
	return uid + " " + name
}

// labelRows are how the vault's database has the labels of a resource.
func labelRows(e *registryv1.Event) (rows []string) {
	uid, _ := keys(e)
	for _, label := range e.GetProject().GetLabels() {
		rows = append(rows, uid+" has "+label)
	}
	for _, label := range e.GetIntegration().GetLabels() {
		if of, ok := strings.CutPrefix(label, "autoattach:"); ok && of != "" && e.GetIntegration().GetAutoAttach() {
			rows = append(rows, uid+" goes by "+of)
		}
	}
	return rows
}

func (r *fakeRegistry) set(change func(r *fakeRegistry)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(r)
	if r.stuck {
		r.streams = -r.watches
	}
	r.rouse()
}

func (r *fakeRegistry) rouse() {
	close(r.wake)
	r.wake = make(chan struct{})
}

func (r *fakeRegistry) remember() {
	var rows []string
	for _, e := range r.wanted {
		rows = append(append(rows, row(e)), labelRows(e)...)
	}
	slices.Sort(rows)
	at := position(r.incarnation, r.revision)
	r.history[at] = append(r.history[at], rows)
}

// commit makes a revision. The caller holds mu.
func (r *fakeRegistry) commit(e *registryv1.Event) {
	r.revision++
	e.Revision = r.revision
	uid, _ := keys(e)
	if e.GetDeleted() {
		delete(r.wanted, uid)
	} else {
		r.wanted[uid] = e
	}
	r.log = append(r.log, e)
	r.remember()
	r.rouse()
}

// put makes or changes resources, each in a revision of its own.
func (r *fakeRegistry) put(events ...*registryv1.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range events {
		r.commit(e)
	}
}

func (r *fakeRegistry) remove(uids ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, uid := range uids {
		r.commit(&registryv1.Event{Deleted: true, Resource: r.wanted[uid].GetResource()})
	}
}

func (r *fakeRegistry) seed(seed uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dice, r.disturb = rand.New(rand.NewPCG(seed, seed)), true
}

func (r *fakeRegistry) draw(n int) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.dice.IntN(n)
}

func (r *fakeRegistry) mutate() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mutateHeld()
}

// mutateHeld makes a change that the registry allows, drawn. The caller holds mu.
func (r *fakeRegistry) mutateHeld() {
	uids := map[byte][]string{}
	for _, uid := range slices.Sorted(maps.Keys(r.wanted)) {
		uids[uid[0]] = append(uids[uid[0]], uid)
	}
	one := func(kind byte) string { return uids[kind][r.dice.IntN(len(uids[kind]))] }
	r.made++
	kind := "iipaa"[r.dice.IntN(5)]
	switch action := r.dice.IntN(3); {
	case kind == 'a' && (len(uids['i']) == 0 || len(uids['p']) == 0):
		return
	case action == 0 && len(uids[kind]) > 0:
		gone := one(kind)
		for _, a := range uids['a'] { // detached first
			if at := r.wanted[a].GetAttachment(); at.GetIntegrationUid() == gone || at.GetProjectUid() == gone {
				r.commit(&registryv1.Event{Deleted: true, Resource: r.wanted[a].GetResource()})
			}
		}
		r.commit(&registryv1.Event{Deleted: true, Resource: r.wanted[gone].GetResource()})
	case action == 1 && len(uids[kind]) > 0:
		uid := one(kind)
		switch old := r.wanted[uid]; kind {
		case 'i':
			i := integration(uid, strings.TrimPrefix(old.GetIntegration().GetName(), "accounts/a/integrations/"))
			i.GetIntegration().DisplayName = fmt.Sprint("changed ", r.made)
			i.GetIntegration().AutoAttach, i.GetIntegration().Labels = r.dice.IntN(3) > 0, r.labels("autoattach:")
			r.commit(i)
		case 'a':
			a := old.GetAttachment()
			r.commit(attachment(uid, a.GetIntegrationUid(), a.GetProjectUid(), typev1.Access(1+r.dice.IntN(2))))
		default:
			r.commit(project(uid, strings.TrimPrefix(old.GetProject().GetName(), "accounts/a/projects/"), r.labels("")...))
		}
	default:
		// Few names, so that they are used again, and anywhere among the pages.
		id := string("abcdefghij"[r.dice.IntN(10)])
		fresh := integration(fmt.Sprint("i-", r.made), id)
		switch kind {
		case 'p':
			fresh = project(fmt.Sprint("p-", r.made), id, r.labels("")...)
		case 'a':
			fresh = attachment(fmt.Sprint("a-", r.made), one('i'), one('p'))
		}
		_, name := keys(fresh)
		for _, e := range r.wanted {
			if _, taken := keys(e); taken == name {
				return
			}
		}
		r.commit(fresh)
	}
}

// labels draws some. The caller holds mu.
func (r *fakeRegistry) labels(prefix string) (labels []string) {
	for _, label := range []string{"dev", "eu", "prod"} {
		if r.dice.IntN(2) == 0 {
			labels = append(labels, prefix+label)
		}
	}
	return labels
}

// cut breaks the streams that there are.
func (r *fakeRegistry) cut(cause error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cutHeld(cause)
}

func (r *fakeRegistry) cutHeld(cause error) {
	r.streams, r.cause = r.watches, cause
	r.rouse()
}

var errRestarted = status.Error(codes.Unavailable, "restarted")

// compact forgets all changes up to one that nobody has been told of.
func (r *fakeRegistry) compact() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cutHeld(errRestarted)
	r.made++
	r.commit(project(fmt.Sprint("p-compacted-", r.made), fmt.Sprint("compacted-", r.made)))
	r.floor = r.revision
}

// become makes it another database, with some of the same in it.
func (r *fakeRegistry) become() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cutHeld(errRestarted)
	r.made++
	r.incarnation, r.revision, r.floor, r.log = fmt.Sprint("r-", r.made), 0, 0, nil
	for _, uid := range slices.Sorted(maps.Keys(r.wanted)) {
		if uid[0] == 'a' {
			delete(r.wanted, uid)
		}
	}
	r.remember()
}

// restore makes it the database that it was at a revision.
func (r *fakeRegistry) restore(revision int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cutHeld(errRestarted)
	log := r.log[:revision]
	r.log, r.revision = nil, 0
	clear(r.wanted)
	for _, e := range log {
		r.commit(e)
	}
}

func (r *fakeRegistry) position() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return position(r.incarnation, r.revision)
}

func (r *fakeRegistry) had(at string, rows []string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.ContainsFunc(r.history[at], func(had []string) bool { return slices.Equal(had, rows) })
}

func (r *fakeRegistry) at(at string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Concat(r.history[at]...)
}

// counted says what it was asked so far.
func (r *fakeRegistry) counted() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return fmt.Sprintf("%d lists, %d watches", r.pages, r.watches)
}

func (r *fakeRegistry) total() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.pages + r.watches
}

// page is a page of one kind by name, as of now.
func (r *fakeRegistry) page(ctx context.Context, kind byte, token string) (events []*registryv1.Event, next string, at int64, cursor string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pages++
	if r.hang {
		r.mu.Unlock()
		<-ctx.Done()
		r.mu.Lock()
		return nil, "", 0, "", status.FromContextError(ctx.Err()).Err()
	}
	if r.down {
		return nil, "", 0, "", status.Error(codes.Unavailable, "down")
	}
	for uid, e := range r.wanted {
		if _, name := keys(e); uid[0] == kind && name > token {
			events = append(events, e)
		}
	}
	slices.SortFunc(events, func(a, b *registryv1.Event) int {
		_, one := keys(a)
		_, other := keys(b)
		return strings.Compare(one, other)
	})
	if len(events) > pageSize {
		events = events[:pageSize]
		_, next = keys(events[pageSize-1])
	}
	at, cursor = r.revision, position(r.incarnation, r.revision)
	between := r.between[r.pages]
	if r.disturb {
		for range r.dice.IntN(3) {
			r.mutateHeld()
		}
	}
	if between != nil {
		r.mu.Unlock()
		between(r)
		r.mu.Lock()
	}
	return events, next, at, cursor, nil
}

// ListIntegrations implements registryv1.IntegrationServiceClient.
func (r *fakeRegistry) ListIntegrations(ctx context.Context, in *registryv1.ListIntegrationsRequest, _ ...grpc.CallOption) (*registryv1.ListIntegrationsResponse, error) {
	if in.GetParent() != "accounts/-" {
		return nil, status.Error(codes.InvalidArgument, in.GetParent())
	}
	events, next, at, cursor, err := r.page(ctx, 'i', in.GetPageToken())
	out := &registryv1.ListIntegrationsResponse{NextPageToken: next, Revision: at, Cursor: cursor}
	for _, e := range events {
		out.Integrations = append(out.Integrations, e.GetIntegration())
	}
	return out, err
}

// ListProjects implements registryv1.ProjectServiceClient.
func (r *fakeRegistry) ListProjects(ctx context.Context, in *registryv1.ListProjectsRequest, _ ...grpc.CallOption) (*registryv1.ListProjectsResponse, error) {
	if in.GetParent() != "accounts/-" {
		return nil, status.Error(codes.InvalidArgument, in.GetParent())
	}
	events, next, at, cursor, err := r.page(ctx, 'p', in.GetPageToken())
	out := &registryv1.ListProjectsResponse{NextPageToken: next, Revision: at, Cursor: cursor}
	for _, e := range events {
		out.Projects = append(out.Projects, e.GetProject())
	}
	return out, err
}

// ListAttachments implements registryv1.AttachmentServiceClient.
func (r *fakeRegistry) ListAttachments(ctx context.Context, in *registryv1.ListAttachmentsRequest, _ ...grpc.CallOption) (*registryv1.ListAttachmentsResponse, error) {
	if in.GetParent() != "accounts/-/projects/-" {
		return nil, status.Error(codes.InvalidArgument, in.GetParent())
	}
	events, next, at, cursor, err := r.page(ctx, 'a', in.GetPageToken())
	out := &registryv1.ListAttachmentsResponse{NextPageToken: next, Revision: at, Cursor: cursor}
	for _, e := range events {
		out.Attachments = append(out.Attachments, e.GetAttachment())
	}
	return out, err
}

// Watch implements registryv1.WatchServiceClient. As with gRPC, what is wrong is said by the first Recv.
func (r *fakeRegistry) Watch(ctx context.Context, in *registryv1.WatchRequest, _ ...grpc.CallOption) (grpc.ServerStreamingClient[registryv1.WatchResponse], error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.watches++
	s := &fakeStream{ctx: ctx, registry: r, number: r.watches}
	incarnation, revision, _ := strings.Cut(in.GetCursor(), "/")
	s.incarnation = incarnation
	if _, err := fmt.Sscan(revision, &s.revision); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	return s, nil
}

// fakeStream is one watch.
type fakeStream struct {
	grpc.ClientStream

	ctx         context.Context
	registry    *fakeRegistry
	number      int
	incarnation string
	revision    int64
	greeted     bool
}

// Recv implements grpc.ServerStreamingClient.
func (s *fakeStream) Recv() (*registryv1.WatchResponse, error) {
	idle := time.NewTimer(bookmarkEvery)
	defer idle.Stop()
	due := !s.greeted
	for {
		s.registry.mu.Lock()
		message, err := s.next(due)
		wake := s.registry.wake
		s.registry.mu.Unlock()
		if message != nil || err != nil {
			return message, err
		}
		select {
		case <-s.ctx.Done():
			return nil, status.FromContextError(s.ctx.Err()).Err()
		case <-wake:
		case <-idle.C:
			due = true
		}
	}
}

// next is what is to be said now, if anything. The caller holds mu.
func (s *fakeStream) next(due bool) (*registryv1.WatchResponse, error) {
	r := s.registry
	switch {
	case s.ctx.Err() != nil:
		return nil, status.FromContextError(s.ctx.Err()).Err()
	case r.down:
		return nil, status.Error(codes.Unavailable, "down")
	case s.number <= r.streams:
		return nil, r.cause
	case r.mute, s.number <= -r.streams:
		return nil, nil
	case s.incarnation != r.incarnation, s.revision > r.revision, s.revision < r.floor:
		return nil, status.Error(codes.OutOfRange, "list again")
	}
	message := &registryv1.WatchResponse{Incarnation: r.incarnation}
	most := r.batch
	if r.disturb {
		most = 1 + r.dice.IntN(5)
	}
	for _, e := range r.log {
		if e.GetRevision() > s.revision && len(message.GetEvents()) < most {
			message.Events = append(message.Events, e)
		}
	}
	if n := len(message.GetEvents()); n > 0 {
		s.revision = message.GetEvents()[n-1].GetRevision()
	} else if !due {
		return nil, nil
	} else {
		s.greeted = true
	}
	message.Revision, message.Cursor = s.revision, position(r.incarnation, s.revision)
	return message, nil
}
