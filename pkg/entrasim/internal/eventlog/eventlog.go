// Package eventlog keeps JSON records in one append-only file. A record that
// Append has accepted survives the process and the machine. A last line cut
// short by a crash was never accepted and is dropped when the file is opened;
// any other damage refuses the file, because what follows it cannot be trusted.
package eventlog

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strconv"
)

// ErrCorrupt says that the file holds a complete line which is not a record.
var ErrCorrupt = errors.New("event log is corrupt")

// ErrBroken says that an earlier write failed: what is on the disk is unknown
// until the file is opened again, so nothing more is accepted.
var ErrBroken = errors.New("event log is broken by an earlier write failure")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Log is an open file. Its methods are not safe for concurrent use.
type Log struct {
	file   *os.File
	broken error
}

// Open opens or creates the file at path and calls replay with each record in
// order. The caller sees to it that one process has it open.
func Open(path string, replay func(record json.RawMessage) error) (*Log, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600) //nolint:gosec // the path is the operator's choice
	if err != nil {
		return nil, fmt.Errorf("open event log: %w", err)
	}
	l := &Log{file: file}
	if err := lock(file); err != nil {
		return nil, errors.Join(fmt.Errorf("lock event log %s: %w", path, err), file.Close())
	}
	if err := l.replay(replay); err != nil {
		return nil, errors.Join(fmt.Errorf("read event log %s: %w", path, err), file.Close())
	}
	if err := syncDir(filepath.Dir(path)); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return l, nil
}

func (l *Log) replay(apply func(json.RawMessage) error) error {
	r := bufio.NewReader(l.file)
	var end int64
	for n := 1; ; n++ {
		line, err := r.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			break // what is left has no line end: torn
		}
		if err != nil {
			return err
		}
		record, err := decode(line)
		if err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
		if err := apply(record); err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
		end += int64(len(line))
	}
	if err := l.file.Truncate(end); err != nil {
		return err
	}
	_, err := l.file.Seek(end, io.SeekStart)
	return err
}

// Append writes the record and returns once it is on the disk.
func (l *Log) Append(record any) error {
	if l.broken != nil {
		return fmt.Errorf("%w: %w", ErrBroken, l.broken)
	}
	line, err := encode(record)
	if err != nil {
		return err
	}
	if _, err = l.file.Write(line); err == nil {
		err = l.file.Sync()
	}
	if err != nil {
		l.broken = err
		return fmt.Errorf("append to event log: %w", err)
	}
	return nil
}

// Close closes the file; nothing more is accepted. Closing again does nothing.
func (l *Log) Close() error {
	if errors.Is(l.broken, os.ErrClosed) {
		return nil
	}
	l.broken = os.ErrClosed
	return l.file.Close()
}

func encode(record any) ([]byte, error) {
	text, err := json.Marshal(record)
	if err != nil {
		return nil, fmt.Errorf("encode record: %w", err)
	}
	line := make([]byte, 0, len(text)+10)
	line = fmt.Appendf(line, "%08x ", crc32.Checksum(text, castagnoli))
	line = append(line, text...)
	return append(line, '\n'), nil
}

func decode(line []byte) (json.RawMessage, error) {
	sum, text, found := bytes.Cut(bytes.TrimSuffix(line, []byte("\n")), []byte(" "))
	if !found {
		return nil, fmt.Errorf("%w: no checksum", ErrCorrupt)
	}
	want, err := strconv.ParseUint(string(sum), 16, 32)
	if err != nil {
		return nil, fmt.Errorf("%w: bad checksum field", ErrCorrupt)
	}
	if uint64(crc32.Checksum(text, castagnoli)) != want {
		return nil, fmt.Errorf("%w: checksum does not match", ErrCorrupt)
	}
	return json.RawMessage(text), nil
}

func syncDir(path string) error {
	dir, err := os.Open(path) //nolint:gosec // the folder of the log itself
	if err != nil {
		return fmt.Errorf("open state folder: %w", err)
	}
	if err := dir.Sync(); err != nil {
		return errors.Join(fmt.Errorf("sync state folder: %w", err), dir.Close())
	}
	return dir.Close()
}
