package command

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"phasekey.dev/pkg/secret"
)

// maxGrant bounds a grant, in bytes.
const maxGrant = 4 << 10

// grantInEnv reports whether somebody put a grant where everybody can see it.
func grantInEnv(env []string) bool {
	for _, entry := range env {
		if value, ok := strings.CutPrefix(entry, envPrefix+"GRANT="); ok && value != "" {
			return true
		}
	}
	return false
}

// readGrant reads the grant from where the flags say, and closes it, so that no child inherits it.
func readGrant(f *execFlags) (secret.Text, error) {
	var file *os.File
	if f.grantFile != "" {
		opened, err := os.Open(f.grantFile)
		if err != nil {
			return secret.Text{}, fmt.Errorf("read the grant: %w", err)
		}
		file = opened
	} else {
		file = os.NewFile(uintptr(f.grantFD), fmt.Sprintf("descriptor %d", f.grantFD))
		if file == nil {
			return secret.Text{}, fmt.Errorf("read the grant: descriptor %d is not open", f.grantFD)
		}
	}
	defer func() { _ = file.Close() }()
	grant, err := grantFrom(file, f.grantFile != "")
	if err != nil {
		return secret.Text{}, fmt.Errorf("read the grant from %s: %w", file.Name(), err)
	}
	return grant, nil
}

// grantFrom reads a grant. What is wrong with it is said without showing it.
func grantFrom(file *os.File, named bool) (secret.Text, error) {
	info, err := file.Stat()
	if err != nil {
		return secret.Text{}, err
	}
	if named && info.Mode().Perm()&0o006 != 0 {
		return secret.Text{}, fmt.Errorf("everybody on this machine can read or write it (mode %04o): chmod 600, and have the platform make a new grant", info.Mode().Perm())
	}
	raw, err := io.ReadAll(io.LimitReader(file, maxGrant+1))
	if err != nil {
		return secret.Text{}, err
	}
	text := strings.TrimSpace(string(raw))
	switch {
	case text == "":
		return secret.Text{}, errors.New("it is empty")
	case len(raw) > maxGrant, strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' }):
		return secret.Text{}, errors.New("this is no grant: more than one word, or too long")
	}
	return secret.New(text), nil
}
