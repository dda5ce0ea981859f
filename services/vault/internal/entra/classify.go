package entra

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	abstractions "github.com/microsoft/kiota-abstractions-go"
	"github.com/microsoftgraph/msgraph-sdk-go/models/odataerrors"

	"phasekey.dev/services/vault/internal/directory"
)

// maxRetryAfter caps what a service may ask of us.
const maxRetryAfter = 10 * time.Minute

// What codes mean, by themselves.
var aadsts, odata = directory.TokenCodes(), directory.GraphCodes() //nolint:gochecknoglobals // constant tables

// tokenError says what a refusal by the token service means; response is nil without a refusal, and why is all that can be
// said when the answer does not say it. A token request changes nothing, so one without an answer is Transient, never
// OutcomeUnknown.
func tokenError(response *http.Response, why error) *directory.Error {
	out := &directory.Error{Op: opToken, Class: directory.Transient, Err: why}
	if response == nil {
		return out
	}
	out.RetryAfter = retryAfter(response.Header.Get("Retry-After"))
	var body struct {
		Codes []int  `json:"error_codes"`
		Text  string `json:"error_description"`
	}
	if payload, readErr := runtime.Payload(response); readErr == nil && json.Unmarshal(payload, &body) == nil && len(body.Codes) > 0 {
		code := body.Codes[0]
		out.Code = "AADSTS" + strconv.Itoa(code)
		out.Err = errors.New(firstLine(body.Text))
		if class, known := aadsts[code]; known {
			out.Class = class
			return out
		}
		out.Class = directory.Unclassified
	}
	switch status := response.StatusCode; {
	case status == http.StatusTooManyRequests:
		out.Class = directory.Throttled
	case status >= 500:
		out.Class = directory.Transient
	case out.Code == "":
		out.Class = directory.Unclassified
	}
	return out
}

// graphError says what a refusal by Graph means. What is left open by a write is OutcomeUnknown: after a lost reply or a 5xx
// only reading tells.
func graphError(op string, write bool, err error) *directory.Error {
	open := directory.Transient
	if write {
		open = directory.OutcomeUnknown
	}
	out := &directory.Error{Op: op, Class: open, Err: err}

	var own *directory.Error
	if errors.As(err, &own) {
		// The request was never sent. That our own credential is refused says nothing about the integration's.
		refused := *own
		refused.Op = op
		if refused.Class != directory.Throttled && refused.Class != directory.Transient {
			refused.Class = directory.Denied
		}
		refused.Err = fmt.Errorf("the platform's own credential: %w", refused.Err)
		return &refused
	}
	if errors.Is(err, errForeignHost) {
		out.Class = directory.Malformed
		return out
	}
	var status int
	var response abstractions.ApiErrorable
	if errors.As(err, &response) {
		status = response.GetStatusCode()
		if headers := response.GetResponseHeaders(); headers != nil {
			if values := headers.Get("Retry-After"); len(values) > 0 {
				out.RetryAfter = retryAfter(values[0])
			}
		}
	}
	var envelope *odataerrors.ODataError
	if errors.As(err, &envelope) {
		// The SDK's Error() dereferences a message that may be absent.
		out.Err = errors.New("graph refused")
		if main := envelope.GetErrorEscaped(); main != nil {
			if code := main.GetCode(); code != nil {
				out.Code = *code
			}
			if message := main.GetMessage(); message != nil {
				out.Err = errors.New(firstLine(*message))
			}
		}
	}
	if class, known := odata[out.Code]; known {
		out.Class = class
		return out
	}
	switch {
	case status == http.StatusNotFound:
		out.Class = directory.NotFound
	case status == http.StatusConflict:
		out.Class = directory.Conflict
	case status == http.StatusTooManyRequests:
		out.Class = directory.Throttled
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		out.Class = directory.Denied
	case status == http.StatusRequestTimeout:
		out.Class = open
	case status >= 400 && status < 500:
		out.Class = directory.Malformed
	}
	return out
}

func retryAfter(value string) time.Duration {
	if value == "" {
		return 0
	}
	seconds, err := strconv.Atoi(strings.TrimSpace(value))
	if err != nil || seconds < 0 {
		return 0
	}
	return min(time.Duration(seconds)*time.Second, maxRetryAfter)
}

// firstLine drops the trace IDs and timestamps that follow.
func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\r\n")
	line, _, _ = strings.Cut(line, " Trace ID:")
	return line
}
