// Package devca makes certificates for development and tests: a CA and what it issues, in a folder.
package devca

import (
	"errors"
	"net"
	"time"
)

// Leaf is what a certificate says of its holder.
type Leaf struct {
	// ID is the SPIFFE ID, the only URI SAN.
	ID string
	// DNS and IPs are further names, so that tools which check host names work too.
	DNS []string
	IPs []net.IP
}

// Files are the paths of one certificate.
type Files struct{ Cert, Key string }

// Authority is a CA in a folder.
type Authority struct{}

// Open uses the CA in dir (ca.pem, ca-key.pem) or makes both.
func Open(dir string, now time.Time) (*Authority, error) { return nil, errors.ErrUnsupported }

// CAFile is the path of the CA's certificate.
func (a *Authority) CAFile() string { return "" }

// Issue returns dir/<name>.pem and dir/<name>-key.pem, made anew unless those that are there say the same, are
// of this CA, and have a third of their life left.
func (a *Authority) Issue(now time.Time, name string, l Leaf) (Files, error) { return Files{}, errors.ErrUnsupported }
