package rpc_test

import (
	"fmt"

	"github.com/google/uuid"
)

// request is a creation that was made by a request ID: what it asked for, and what came of it.
type request struct {
	parent, id, contents string
	uid, etag            string
	// what is it as the model asked for it.
	what any
}

// draw gives a creation in a parent a request ID: none, a fresh one, or that of an earlier creation there, which is nil otherwise.
func (p *player) draw(parent string) (id string, earlier *request) {
	if p.yes() {
		return "", nil
	}
	for _, i := range p.dice.Perm(len(p.requests)) {
		if r := p.requests[i]; r.parent == parent && p.dice.IntN(3) == 0 {
			return r.id, r
		}
	}
	return uuid.NewString(), nil
}

// repeated says how a creation with the request ID of an earlier one ends, whatever else there is by now.
func (r *request) repeated(contents string) refused {
	if r.contents != contents {
		return "REQUEST_ID_REUSED"
	}
	return ""
}

// made takes in what came of a creation. A repeat gives what the first one gave, as it was then: it reports false, and nothing is new.
func (p *player) made(r request, earlier *request, created tagged) (isNew bool) {
	p.t.Helper()
	switch {
	case earlier != nil:
		if created.GetUid() != earlier.uid || created.GetEtag() != earlier.etag {
			p.t.Fatalf("repeated %s gave %v, at first %+v", r.id, created, *earlier)
		}
		p.ends["repeated"]++
		return false
	case r.id != "":
		r.uid, r.etag = created.GetUid(), created.GetEtag()
		p.requests = append(p.requests, &r)
	}
	return true
}

// contentsOf is what a creation asks for.
func contentsOf(parts ...any) string { return fmt.Sprintf("%q", parts) }
