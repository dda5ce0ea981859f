package entrasim

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
)

const (
	batchSegment = "$batch"
	maxBatch     = 20
)

// batchStep is one request of a batch.
type batchStep struct {
	ID        string            `json:"id"`
	Method    string            `json:"method"`
	URL       string            `json:"url"`
	Headers   map[string]string `json:"headers"`
	Body      json.RawMessage   `json:"body"`
	DependsOn []string          `json:"dependsOn"`
}

// target is the step's URL without its origin.
func (b batchStep) target() string {
	return "/v1.0/" + strings.TrimPrefix(b.URL, "/")
}

// hasBody tells whether it has one; clients write null for none.
func (b batchStep) hasBody() bool {
	return b.Body != nil && string(b.Body) != "null"
}

// batchAnswer is what became of it.
type batchAnswer struct {
	ID      string            `json:"id"`
	Status  int               `json:"status"`
	Headers map[string]string `json:"headers"`
	Body    json.RawMessage   `json:"body"`
}

// batch is POST /v1.0/$batch. Each step is a request of its own, for
// permissions, budgets, faults, replicas and the journal; the batch around them
// costs nothing. They are carried out in the order given, and answered in
// another, as Graph may.
func (s *Simulator) batch(c *call) reply {
	var body struct {
		Requests []batchStep `json:"requests"`
	}
	text := "Invalid batch payload format."
	if bad := decodeBody(c, &body); bad == nil {
		text = wrongBatch(body.Requests)
	}
	if text != "" {
		return c.fail(http.StatusBadRequest, "BadRequest", text)
	}
	failed := make(map[string]bool)
	answers := make([]batchAnswer, 0, len(body.Requests))
	for _, step := range body.Requests {
		a := batchAnswer{ID: step.ID}
		depends := false
		for _, id := range step.DependsOn {
			depends = depends || failed[strings.ToLower(id)]
		}
		r := c.fail(http.StatusFailedDependency, "FailedDependency", "")
		if !depends {
			var gone error
			if r, gone = s.step(c, step); gone != nil {
				return reply{cut: true}
			}
		}
		a.Status, a.Headers, a.Body = r.status, make(map[string]string), r.batched()
		for name := range r.header {
			a.Headers[name] = r.header.Get(name)
		}
		failed[strings.ToLower(step.ID)] = r.status >= http.StatusBadRequest
		answers = append(answers, a)
	}
	dice := s.dice.Of(c.actor)
	for i := len(answers) - 1; i > 0; i-- {
		k := dice.IntN(i + 1)
		answers[i], answers[k] = answers[k], answers[i]
	}
	out := jsonReply(http.StatusOK, map[string]any{"responses": answers})
	out.header.Set("Content-Type", "application/json")
	graphHeaders(c, out.header)
	return out
}

// wrongBatch says what is wrong with a batch as a whole, nothing when all is well.
func wrongBatch(steps []batchStep) string {
	switch {
	case len(steps) == 0:
		return "Invalid batch payload format."
	case len(steps) > maxBatch:
		return "Number of batch request steps exceeds the maximum value of 20."
	}
	known := make(map[string]bool)
	for _, step := range steps {
		id := strings.ToLower(step.ID)
		shown := clip(step.ID, 64)
		path, _, _ := strings.Cut(step.URL, "?")
		u, err := url.Parse(step.target())
		content := false
		for name := range step.Headers {
			content = content || strings.EqualFold(name, "Content-Type")
		}
		writes := step.Method == http.MethodPost || step.Method == http.MethodPatch || step.Method == http.MethodPut
		switch {
		case id == "" || step.Method == "" || err != nil:
			return "Invalid batch payload format."
		case known[id]:
			return "Request Id " + shown + " has to be unique in a batch."
		case writes && (!step.hasBody() || !content), step.hasBody() && !content:
			return "Write request id : " + shown + " does not contain Content-Type header or body."
		case step.hasBody() && step.Body[0] != '{':
			return "Invalid body of request Id " + shown + ": it is not a JSON object."
		case strings.Contains(path, "://"):
			return "Invalid URL of request Id " + shown + ": it is not relative."
		case len(split(u)) > 1 && strings.EqualFold(split(u)[1], batchSegment):
			return "Invalid URL of request Id " + shown + ": a batch cannot be within a batch."
		}
		for _, on := range step.DependsOn {
			if !known[strings.ToLower(on)] {
				return "Invalid dependency for request Id " + shown + ": " + clip(on, 64) + "."
			}
		}
		known[id] = true
	}
	return ""
}

// step carries one request of a batch out, under the batch's token. Its error is
// that of a caller who has gone.
func (s *Simulator) step(c *call, step batchStep) (reply, error) {
	var body []byte
	if step.hasBody() {
		body = step.Body
	}
	u, err := url.Parse(step.target()) // which wrongBatch has done before
	if err != nil {
		return reply{}, err
	}
	r := (&http.Request{
		Method: step.Method, URL: u, Header: make(http.Header), Body: io.NopCloser(bytes.NewReader(body)), Host: c.Host, RemoteAddr: c.RemoteAddr,
	}).WithContext(c.Context())
	for name, value := range step.Headers {
		r.Header.Set(name, value)
	}
	r.Header.Set("Authorization", c.Header.Get("Authorization"))
	out, err := s.serve(r, PlaneGraph)
	if err == nil && (out.cut || out.short) {
		// Graph's front has lost the service behind it, and answers all the same.
		code, message := usualTrouble(PlaneGraph, http.StatusGatewayTimeout)
		out = c.fail(http.StatusGatewayTimeout, code, message)
	}
	return out, err
}

// batched is the body as a batch holds it: JSON as it is, nothing as null, and
// other text encoded.
func (r reply) batched() json.RawMessage {
	switch {
	case len(r.body) == 0:
		return json.RawMessage("null")
	case json.Valid(r.body):
		return r.body
	}
	text, _ := json.Marshal(r.body) // base64: bytes always encode
	return text
}
