package notary

import "context"

// WriteFile brings a file up to date, as a process that has just started.
func WriteFile(ctx context.Context, name string, from store) error {
	f := &file{name: name}
	defer func() { _ = f.close() }()
	return f.follow(ctx, from)
}
