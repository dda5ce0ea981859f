package notary

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"phasekey.dev/pkg/chain"
)

// fileLimit is how many checkpoints are read at once.
const fileLimit = 500

// file is where checkpoints are written outside of the database, each a line of JSON: a chain.Signed.
type file struct {
	name string
	to   *os.File
	last int64 // the number of the newest in it
}

// follow appends the checkpoints that are not in the file yet. It is opened at the first: one that cannot be written is tried again.
func (f *file) follow(ctx context.Context, from store) error {
	if f.to == nil {
		if err := f.open(); err != nil {
			return fmt.Errorf("audit checkpoints' file: %w", err)
		}
	}
	for {
		fresh, err := from.Checkpoints(ctx, f.last, fileLimit)
		if err != nil || len(fresh) == 0 {
			return err
		}
		var lines bytes.Buffer
		for _, c := range fresh {
			line, err := json.Marshal(c.Signed)
			if err != nil {
				return err
			}
			lines.Write(append(line, '\n'))
		}
		if _, err := f.to.Write(lines.Bytes()); err != nil {
			// Part of it may have been written: what is there is found anew.
			return fmt.Errorf("audit checkpoints' file: %w", errors.Join(err, f.close()))
		}
		if err := f.to.Sync(); err != nil && f.regular() {
			return fmt.Errorf("audit checkpoints' file: %w", errors.Join(err, f.close()))
		}
		f.last = fresh[len(fresh)-1].Number
	}
}

func (f *file) regular() bool {
	info, err := f.to.Stat()
	return err == nil && info.Mode().IsRegular()
}

// open opens the file, and finds the newest checkpoint in it. What cannot be read again, a pipe for example, gets all there are.
func (f *file) open() error {
	to, err := os.OpenFile(f.name, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o640) //nolint:gosec // the file that the configuration names; others may read it
	if err != nil {
		return err
	}
	f.to, f.last = to, 0
	if !f.regular() {
		return nil
	}
	lines := bufio.NewReader(to)
	whole := int64(0)
	for {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			break // what is behind the last newline is half a line
		}
		if err != nil {
			return errors.Join(err, f.close())
		}
		whole += int64(len(line))
		var signed chain.Signed
		if json.Unmarshal(line, &signed) != nil {
			continue
		}
		if c, err := signed.Unverified(); err == nil {
			f.last = max(f.last, c.Number)
		}
	}
	if err := to.Truncate(whole); err != nil {
		return errors.Join(err, f.close())
	}
	return nil
}

func (f *file) close() error {
	if f == nil || f.to == nil {
		return nil
	}
	err := f.to.Close()
	f.to = nil
	return err
}
