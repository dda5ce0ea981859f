// Package devca makes certificates for development and tests: a CA and what it issues, in a folder.
//
// It guarantees that private keys are readable by their owner only, that files appear whole or not at all, and that what is
// in the folder and still good is used again, so that clients keep their ca.pem. It is no CA for production: the CA's key lies
// beside what it signs, and nothing is ever revoked.
package devca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Lives of certificates, and how far back they begin, for clocks that differ.
const (
	caLife   = 10 * 365 * 24 * time.Hour
	leafLife = 90 * 24 * time.Hour
	backdate = time.Hour
)

// Leaf is what a certificate says of its holder.
type Leaf struct {
	// ID is the SPIFFE ID, the only URI SAN.
	ID string
	// DNS and IPs are further names, so that tools which check host names work too.
	DNS []string
	IPs []net.IP
}

// Files are the paths of one certificate and its key, as PEM.
type Files struct{ Cert, Key string }

// Authority is a CA in a folder.
type Authority struct {
	dir  string
	cert *x509.Certificate
	key  crypto.Signer
}

// Open uses the CA in dir (ca.pem, ca-key.pem), or makes both if neither is there. The folder is made if need be. One file without the
// other, or ones that do not fit or have expired, are an error: what they signed is still in use somewhere.
func Open(dir string, now time.Time) (*Authority, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open ca: %w", err)
	}
	a := &Authority{dir: dir}
	files := a.files("ca")
	_, certErr := os.Stat(files.Cert)
	_, keyErr := os.Stat(files.Key)
	if errors.Is(certErr, fs.ErrNotExist) && errors.Is(keyErr, fs.ErrNotExist) {
		if err := a.create(now, files); err != nil {
			return nil, fmt.Errorf("make ca: %w", err)
		}
		return a, nil
	}
	pair, err := tls.LoadX509KeyPair(files.Cert, files.Key)
	if err != nil {
		return nil, fmt.Errorf("open ca: %w", err)
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok || !pair.Leaf.IsCA {
		return nil, fmt.Errorf("open ca: %s is no CA", files.Cert)
	}
	if now.After(pair.Leaf.NotAfter) {
		return nil, fmt.Errorf("open ca: %s expired at %s", files.Cert, pair.Leaf.NotAfter.UTC())
	}
	a.cert, a.key = pair.Leaf, key
	return a, nil
}

// create makes the CA.
func (a *Authority) create(now time.Time, files Files) error {
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "Phasekey development CA"},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(caLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	a.key = key
	der, err := a.write(files, template, template, key)
	if err != nil {
		return err
	}
	a.cert, err = x509.ParseCertificate(der)
	return err
}

// CAFile is the path of the CA's certificate.
func (a *Authority) CAFile() string { return a.files("ca").Cert }

// files are the paths of a name's certificate and key.
func (a *Authority) files(name string) Files {
	return Files{Cert: filepath.Join(a.dir, name+".pem"), Key: filepath.Join(a.dir, name+"-key.pem")}
}

// Issue returns dir/<name>.pem and dir/<name>-key.pem (P-256, 90 days), made anew unless those that are there say the same, are of
// this CA, and have a third of their life left.
func (a *Authority) Issue(now time.Time, name string, l Leaf) (Files, error) {
	files := a.files(name)
	if name == "ca" || filepath.Base(name) != name {
		return Files{}, fmt.Errorf("issue certificate: bad name %q", name)
	}
	id, err := spiffeid.FromString(l.ID)
	if err != nil {
		return Files{}, fmt.Errorf("issue %s: %w", name, err)
	}
	if a.good(now, files, id, l) {
		return files, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Files{}, fmt.Errorf("issue %s: %w", name, err)
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: name},
		NotBefore:   now.Add(-backdate),
		NotAfter:    now.Add(leafLife),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{id.URL()},
		DNSNames:    l.DNS,
		IPAddresses: l.IPs,
	}
	if _, err := a.write(files, template, a.cert, key); err != nil {
		return Files{}, fmt.Errorf("issue %s: %w", name, err)
	}
	return files, nil
}

// good reports whether what is there will do.
func (a *Authority) good(now time.Time, files Files, id spiffeid.ID, l Leaf) bool {
	pair, err := tls.LoadX509KeyPair(files.Cert, files.Key)
	if err != nil {
		return false
	}
	c := pair.Leaf
	return c.CheckSignatureFrom(a.cert) == nil &&
		now.Add(leafLife/3).Before(c.NotAfter) && !now.Before(c.NotBefore) &&
		len(c.URIs) == 1 && c.URIs[0].String() == id.String() &&
		slices.Equal(c.DNSNames, l.DNS) && slices.EqualFunc(c.IPAddresses, l.IPs, net.IP.Equal)
}

// write signs a certificate and writes it and its key, the key first: a reader between the two finds a pair that does not
// fit, and tries again.
func (a *Authority) write(files Files, template, parent *x509.Certificate, key *ecdsa.PrivateKey) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), a.key)
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	if err := replace(files.Key, "PRIVATE KEY", keyDER, 0o600); err != nil {
		return nil, err
	}
	return der, replace(files.Cert, "CERTIFICATE", der, 0o644)
}

// replace writes a PEM file beside the old one and renames it over it.
func replace(path, kind string, der []byte, mode fs.FileMode) error {
	var b bytes.Buffer
	if err := pem.Encode(&b, &pem.Block{Type: kind, Bytes: der}); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*") // 0600 until chmod
	if err != nil {
		return err
	}
	_, err = f.Write(b.Bytes())
	err = errors.Join(err, f.Chmod(mode), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}
