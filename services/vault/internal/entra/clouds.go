package entra

import (
	"context"
	"errors"
	"fmt"

	"phasekey.dev/services/vault/internal/directory"
)

// ErrNoCloud means that an integration names a cloud that the configuration does not have.
var ErrNoCloud = errors.New("no such cloud is configured")

// Clouds are the directories by the names that integrations call their clouds.
type Clouds map[string]*Directory

// In returns a cloud's directory; ErrNoCloud when there is none.
func (c Clouds) In(cloud string) (*Directory, error) {
	d, ok := c[cloud]
	if !ok {
		return nil, fmt.Errorf("%w: %q", ErrNoCloud, cloud)
	}
	return d, nil
}

// Token is Directory.Token in the named cloud.
func (c Clouds) Token(ctx context.Context, cloud string, request directory.TokenRequest) (directory.Token, error) {
	d, err := c.In(cloud)
	if err != nil {
		return directory.Token{}, &directory.Error{Op: opToken, Class: directory.Malformed, Err: err}
	}
	return d.Token(ctx, request)
}
