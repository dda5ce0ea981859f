package confload

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"
)

// ErrRequired is the problem of a key that must be there, and is not.
var ErrRequired = errors.New("required")

// Problems are what Validate gathers, and joins in the end.
type Problems []error

// Add adds what is wrong with a key, if anything is: each of several problems that were joined is a line of its own, with the key.
func (p *Problems) Add(key string, err error) {
	if err == nil {
		return
	}
	several, ok := err.(interface{ Unwrap() []error }) // what is joined further in is said by those around it
	if !ok || errors.Join(several.Unwrap()...).Error() != err.Error() {
		*p = append(*p, fmt.Errorf("%s: %w", key, err))
		return
	}
	for _, one := range several.Unwrap() {
		p.Add(key, one)
	}
}

// Require adds that a key is required, if it is empty.
func (p *Problems) Require(key, value string) {
	if value == "" {
		p.Add(key, ErrRequired)
	}
}

// CheckOrigin refuses what cannot stand before the path of a link.
func CheckOrigin(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || text != "https://"+u.Host {
		return errors.New("must be an https origin without a path, such as https://login.example.com")
	}
	return nil
}

// CheckSPIFFEID refuses what cannot be a service's identity.
func CheckSPIFFEID(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "spiffe" || u.Host == "" || strings.Trim(u.Path, "/") == "" {
		return errors.New("must be a SPIFFE ID, such as spiffe://example.org/service")
	}
	return nil
}

// CheckSpan refuses what is less than the least or more than the most.
func CheckSpan(d, least, most time.Duration) error {
	if d < least || d > most {
		return fmt.Errorf("%s is not from %s to %s", d, least, most)
	}
	return nil
}
