package entra

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
)

// opToken is what the errors of a credential say was asked.
const opToken = "request token"

// errUnreadable stands for an answer that the SDK could not read.
var errUnreadable = errors.New("the answer could not be read")

// quiet is a credential whose errors are *directory.Error and quote nothing. The SDK's own are texts that quote what was
// answered: a token, when an answer is cut off; our secret, when a proxy repeats the request.
type quiet struct{ azcore.TokenCredential }

// GetToken implements azcore.TokenCredential.
func (q quiet) GetToken(ctx context.Context, options policy.TokenRequestOptions) (azcore.AccessToken, error) {
	heard := &witness{}
	token, err := q.TokenCredential.GetToken(context.WithValue(ctx, witnessKey{}, heard), options)
	if err == nil {
		return token, nil
	}
	var response *http.Response
	if failed := (*azidentity.AuthenticationFailedError)(nil); errors.As(err, &failed) {
		response = failed.RawResponse
	}
	var why error
	switch {
	case response != nil:
		why = fmt.Errorf("the token service answered with status %d", response.StatusCode)
	case ctx.Err() != nil:
		why = ctx.Err()
	default:
		why = heard.last()
	}
	return azcore.AccessToken{}, tokenError(response, why)
}

// witness hears what went wrong below the SDK in one call, which the SDK makes a part of a longer text.
type witness struct {
	mu  sync.Mutex
	err error
}

type witnessKey struct{}

// testify tells the witness of a request, if it has one.
func testify(r *http.Request, err error) {
	if w, ok := r.Context().Value(witnessKey{}).(*witness); ok {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.err = err
	}
}

// last is what went wrong last; that an answer could not be read, when nothing did.
func (w *witness) last() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		return errUnreadable
	}
	return w.err
}
