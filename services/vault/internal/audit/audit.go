// Package audit says what an audit record is, how records are chained, and by which keys.
//
// Each process writes a chain of its own (see package chain), to which every record adds a hash over its contents and all before it, and an HMAC of
// that hash. It guarantees that nobody without the vault's keys adds, changes or removes a record without its being found: up to the newest checkpoint by
// anybody who has the public key; after it, within a minute, by the vault itself, which signs only what bears its HMAC. What it cannot know is
// whether the vault, while it had the keys, wrote the truth.
//
// All keys are derived from the keyring's data keys, one of each kind a data key: nothing has to be stored, made once or brought to other replicas.
// When a data key is added, records and checkpoints come to be made by its keys, and the last checkpoint of the former key names the next one.
package audit

import (
	"context"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"

	"phasekey.dev/pkg/chain"
)

// Entry is one line of a record: a record has one, or, when one credential went to many leases, one for each. Times are microseconds since 1970, 0
// for none. The JSON of a record's entries is its content, which is hashed: a field that is added later must be left out when it is empty.
type Entry struct {
	Time            int64  `json:"time"`
	Kind            string `json:"kind"`
	Actor           string `json:"actor,omitempty"`
	RequestID       string `json:"request_id,omitempty"`
	Account         string `json:"account,omitempty"`
	GrantUID        string `json:"grant_uid,omitempty"`
	Run             string `json:"run,omitempty"`
	LeaseUID        string `json:"lease_uid,omitempty"`
	InstanceID      string `json:"instance_id,omitempty"`
	Generation      int64  `json:"generation,omitempty"`
	Integration     string `json:"integration,omitempty"`
	IntegrationUID  string `json:"integration_uid,omitempty"`
	Project         string `json:"project,omitempty"`
	ProjectUID      string `json:"project_uid,omitempty"`
	VersionID       string `json:"version_id,omitempty"`
	Material        string `json:"material,omitempty"`
	Reason          string `json:"reason,omitempty"`
	Audience        string `json:"audience,omitempty"`
	ClientRequestID string `json:"client_request_id,omitempty"`
	ExpireTime      int64  `json:"expire_time,omitempty"`
}

// Content is what is hashed of a record.
func Content(entries []Entry) ([]byte, error) {
	content, err := json.Marshal(entries)
	if err != nil {
		return nil, fmt.Errorf("write audit record: %w", err)
	}
	return content, nil
}

// Record is a record as it is stored.
type Record struct {
	Writer string
	Seq    int64
	// Hash ties it to those before it, and MAC is over the hash, by the key of the data key KeyID.
	Hash  chain.Hash
	MAC   []byte
	KeyID uint32
	// Entries are at least one. What they have in common is their kind, account, integration, version, material, reason, audience and end.
	Entries []Entry
}

// Keys derives keys; see keyring.Keyring.
type Keys interface {
	// Current is the ID of the newest data key.
	Current() uint32
	// Derive gives 32 bytes that are the purpose's alone.
	Derive(ctx context.Context, id uint32, purpose string) ([]byte, error)
}

const (
	purposeMAC    = "audit record"
	purposeSigner = "audit checkpoint"
)

// ErrMAC means that a record does not bear the vault's HMAC.
var ErrMAC = errors.New("audit record was not written by the vault")

// Authenticate is the HMAC of a record's hash by the newest key.
func Authenticate(ctx context.Context, keys Keys, hash chain.Hash) (keyID uint32, mac []byte, err error) {
	keyID = keys.Current()
	mac, err = macOf(ctx, keys, keyID, hash)
	return keyID, mac, err
}

// Check is ErrMAC unless the vault wrote a record of that hash.
func Check(ctx context.Context, keys Keys, r Record) error {
	mac, err := macOf(ctx, keys, r.KeyID, r.Hash)
	if err != nil {
		return err
	}
	if !hmac.Equal(mac, r.MAC) {
		return ErrMAC
	}
	return nil
}

func macOf(ctx context.Context, keys Keys, id uint32, hash chain.Hash) ([]byte, error) {
	key, err := keys.Derive(ctx, id, purposeMAC)
	if err != nil {
		return nil, fmt.Errorf("key of audit records: %w", err)
	}
	h := hmac.New(sha256.New, key)
	h.Write(hash[:])
	return h.Sum(nil), nil
}

// Signer is the key by which checkpoints are signed.
func Signer(ctx context.Context, keys Keys, id uint32) (ed25519.PrivateKey, error) {
	seed, err := keys.Derive(ctx, id, purposeSigner)
	if err != nil {
		return nil, fmt.Errorf("key of audit checkpoints: %w", err)
	}
	return ed25519.NewKeyFromSeed(seed), nil
}

// Public is the public key of a signer.
func Public(signer ed25519.PrivateKey) ed25519.PublicKey {
	key, _ := signer.Public().(ed25519.PublicKey) // which it is, always
	return key
}
