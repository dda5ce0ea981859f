// Package reread uses files, and uses them again when what is in them changes.
//
// It looks at contents, not at times: a mounted secret changes behind a symbolic link. Contents that cannot be used (half written, of two renewals) are
// not tried again before they change, and whoever uses the files keeps what they had.
package reread

import (
	"bytes"
	"context"
	"os"
	"slices"
	"time"
)

// Files are those that are used together. They are not for several goroutines at once.
type Files struct {
	use   func(contents [][]byte) error
	names []string
	// tried are the contents that were used last, or could not be; nil before the first.
	tried [][]byte
}

// New is the files of these names, of which an empty one has no contents, and what uses them.
func New(use func(contents [][]byte) error, names ...string) *Files {
	return &Files{use: use, names: names}
}

// Read reads the files and, if their contents differ from what was tried last, uses them.
func (f *Files) Read() (changed bool, err error) {
	got := make([][]byte, len(f.names))
	for i, name := range f.names {
		if name == "" {
			continue
		}
		if got[i], err = os.ReadFile(name); err != nil { //nolint:gosec // the file that the configuration names
			// Try again next time, even if the contents come back as they were.
			f.tried = nil
			return false, err
		}
	}
	if slices.EqualFunc(got, f.tried, bytes.Equal) {
		return false, nil
	}
	f.tried = got
	if err := f.use(got); err != nil {
		return false, err
	}
	return true, nil
}

// Follow reads the files so often, until ctx ends. It tells nil when they were used, and otherwise why they could not be.
func (f *Files) Follow(ctx context.Context, every time.Duration, tell func(err error)) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if changed, err := f.Read(); changed || err != nil {
			tell(err)
		}
	}
}
