package year_test

import (
	"bufio"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"sync"
	"time"

	"phasekey.dev/pkg/entrasim"
	"phasekey.dev/pkg/sqldb"
	"phasekey.dev/pkg/sqldbtest"
	"phasekey.dev/services/vault/internal/credential"
	"phasekey.dev/services/vault/internal/delivery"
	"phasekey.dev/services/vault/internal/lease"
)

// event is one of the things that the judge judges by, and all that it has: what is judged again is judged by the same. None has a secret in it.
type event interface{ happen(j *judge) }

// What happens. Integrations are named by their UIDs.
type (
	// begun is the first event: the timing is what the rotator is held to.
	begun struct {
		Seed   uint64
		Timing credential.Timing
	}
	// day is over, and is judged.
	day struct{}
	// broke is that the harness, or what it asked of the vault, failed.
	broke struct{ What string }
	// counted is something that the report shall tell of.
	counted struct{ What string }

	// Of the registry: wanted is an integration that is new or has changed its kind; looked is that it shall be judged now; left, that it is being deleted from now on: nothing more is delivered, and
	// what was is taken back. reported is what the vault says of one.
	wanted struct {
		Integration, Name string
		Federated         bool
	}
	looked   struct{ Integration string }
	left     struct{ Integration string }
	reported struct {
		Integration, Client string
		Ready, Removed      bool
	}
	// consented is that a customer gave consent, or took it back.
	consented struct {
		Integration string
		Given       bool
	}

	// Of operators.
	compromised struct {
		Integration, Rotation string
		At                    time.Time
		UpTo                  int64
		Immediately           bool
	}
	dropped struct{ SigningKey string }

	// Of Entra: changed is a change in the simulator's journal; issuerRead are the keys in a document of the issuer's that it has read.
	changed struct {
		Kind, Application, Key string
		Time                   time.Time
		Login                  entrasim.Moments
	}
	issuerRead struct{ Keys []string }

	// Of commits: what they have made of rows. Times are the database's.
	version struct {
		Integration, ID, Key, SigningKey, State    string
		Number                                     int64
		Add, Activate, Retire, Revoke, Remove, End int64
		Gone                                       bool
	}
	asked struct {
		ID, State     string
		Activate, End int64
		Gone          bool
	}
	// recorded is that a delivery is on record; together with others, it is a row of its own only later.
	recorded struct {
		Record, Lease, Grant string
		Generation, Time     int64
		Together             bool
	}
	taken struct {
		Shard  int64
		Holder string
	}
	// wrote is that a replica has just committed something as master.
	wrote struct {
		Replica, Step string
		Shard         int64
		Holder        string
	}

	// Of what a life was answered when it asked for a token; it has no Holder when it did not ask as a master.
	heard struct {
		Life   string
		Shown  shown
		Sent   time.Time
		Code   int // 0 when it was granted
		Shard  int64
		Holder string
	}

	// Of runners: a receipt is what one was given, an exchange what Entra said to an assertion; released is that nothing is claimed any more of what it has, over that nothing more comes of it.
	receipt struct {
		Job, Integration, Grant, Lease string
		Generation, Version            int64
		Client                         string
		Material                       lease.Material
		Reason                         delivery.Reason
		Key                            string // that an assertion is signed by
		Issue, Expire, GrantExpire     time.Time
		Slow                           bool
	}
	exchange struct {
		Job, Integration, Client string
		Version                  int64
		Refusal                  string // empty when there is none
	}
	released struct{ Job string }
	over     struct{ Job string }

	// Of lives and the weather: anew is that somebody has to begin anew; answers that a life answers from now on, or does not.
	killed  struct{ Step string }
	answers struct {
		Life string
		Is   bool
	}
	anew   struct{}
	clouds struct {
		Kind  kind
		There bool
	}
)

// kinds are what lines of a journal can be about, by name.
var kinds = func() map[string]reflect.Type { //nolint:gochecknoglobals // a table
	out := map[string]reflect.Type{}
	for _, e := range []event{
		begun{}, day{}, broke{}, counted{}, wanted{}, looked{}, left{}, reported{}, consented{}, compromised{}, dropped{}, changed{}, issuerRead{}, version{}, asked{}, recorded{}, taken{},
		wrote{}, heard{}, receipt{}, exchange{}, released{}, over{}, killed{}, answers{}, anew{}, clouds{},
	} {
		out[reflect.TypeOf(e).Name()] = reflect.TypeOf(e)
	}
	return out
}()

// journal is the one order in which everything happened: the judge is told, and the file has it.
type journal struct {
	mu    sync.Mutex
	judge *judge
	file  *os.File
	zip   *gzip.Writer
	lines *json.Encoder
	err   error // the first of writing
}

// newJournal writes to the file.
func newJournal(file *os.File) (*journal, error) {
	// A quarter of the time for a third more of space.
	zip, err := gzip.NewWriterLevel(file, gzip.BestSpeed)
	if err != nil {
		return nil, err
	}
	return &journal{judge: newJudge(), file: file, zip: zip, lines: json.NewEncoder(zip)}, nil
}

// line is an event in the file.
type line[E any] struct {
	At   int64 // in nanoseconds of Unix time
	What string
	Of   E
}

// tell adds what happens now, at once.
func (l *journal) tell(events ...event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := time.Now().UnixNano()
	for _, e := range events {
		l.err = errors.Join(l.err, l.lines.Encode(line[event]{at, reflect.TypeOf(e).Name(), e}))
		l.judge.take(at, e)
		if _, ok := e.(day); ok {
			l.err = errors.Join(l.err, l.zip.Flush()) // a process that is killed leaves that
		}
	}
}

// ask lets the judge be asked between two events.
func (l *journal) ask(question func(j *judge)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	question(l.judge)
}

// counted is how often something happened so far.
func (l *journal) counted(what string) (n int) {
	l.ask(func(j *judge) { n = j.counted(what) })
	return n
}

// close ends the file.
func (l *journal) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return errors.Join(l.err, l.zip.Close(), l.file.Close())
}

// judgeAgain has a new judge judge by a file. One that its process could not end is judged as far as it goes, which cut says.
func judgeAgain(file string) (j *judge, cut bool, err error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, false, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	zip, err := gzip.NewReader(bufio.NewReader(f))
	if err != nil {
		return nil, false, err
	}
	j = newJudge()
	lines := json.NewDecoder(zip)
	for {
		var l line[json.RawMessage]
		switch err := lines.Decode(&l); {
		case errors.Is(err, io.EOF):
			return j, false, nil
		case errors.Is(err, io.ErrUnexpectedEOF):
			return j, true, nil
		case err != nil:
			return nil, false, err
		}
		kind := kinds[l.What]
		if kind == nil {
			return nil, false, fmt.Errorf("there is no event named %q", l.What)
		}
		e := reflect.New(kind)
		if err := json.Unmarshal(l.Of, e.Interface()); err != nil {
			return nil, false, err
		}
		j.take(l.At, e.Elem().Interface().(event)) //nolint:forcetypeassert // all kinds are
	}
}

// follow tells what is new in the simulator's journal.
func (w *world) follow() {
	w.following.Lock()
	defer w.following.Unlock()
	for _, e := range w.sim.Journal(entrasim.Query{After: w.followed}) {
		w.followed = e.Seq
		switch e.Kind {
		case "password.added", "password.removed", "federatedCredential.added", "federatedCredential.removed", "application.purged":
			w.journal.tell(changed{Kind: e.Kind, Application: e.Application, Key: e.KeyID, Time: e.Time, Login: e.Visible.Login})
		}
	}
}

// watched are the columns of the vault's database that are judged by.
var watched = map[string][]string{ //nolint:gochecknoglobals // a table
	"credential_versions": {
		"integration_uid", "id", "key_id", "signing_key", "state", "number", "add_time", "activate_time", "retire_time", "revoke_time", "remove_time", "end_time",
	},
	"rotations":     {"id", "state", "activate_time", "end_time"},
	"audit_events":  {"writer", "seq", "kind", "lease_uid", "grant_uid", "generation", "time"},
	"audit_fanouts": {"writer", "seq", "content"},
	"shards":        {"shard", "holder"},
}

// eventsOf are what a transaction has changed.
func eventsOf(changes []sqldbtest.Change) (all []event) {
	for _, c := range changes {
		before, is := rowsOf(c.Table, c.Old), rowsOf(c.Table, c.New)
		if c.New == nil {
			all = append(all, goneOf(before)...)
			continue
		}
		for _, e := range is {
			if !slices.Contains(before, e) {
				all = append(all, e)
			}
		}
	}
	return all
}

// rowsOf is what a row says, as events; nothing of what is not judged by.
func rowsOf(table string, c []any) []event {
	if c == nil {
		return nil
	}
	text := func(n int) string { return c[n].(string) } //nolint:forcetypeassert // the column's type
	number := func(n int) int64 { return c[n].(int64) } //nolint:forcetypeassert // the column's type
	switch table {
	case "credential_versions":
		return []event{version{
			Integration: text(0), ID: text(1), Key: text(2), SigningKey: text(3), State: text(4), Number: number(5),
			Add: number(6), Activate: number(7), Retire: number(8), Revoke: number(9), Remove: number(10), End: number(11),
		}}
	case "rotations":
		return []event{asked{ID: text(0), State: text(1), Activate: number(2), End: number(3)}}
	case "audit_events":
		if text(2) == delivered {
			return []event{recorded{Record: fmt.Sprint(text(0), "/", number(1)), Lease: text(3), Grant: text(4), Generation: number(5), Time: number(6)}}
		}
	case "audit_fanouts":
		return recordedTogether(fmt.Sprint(text(0), "/", number(1)), c[2].([]byte)) //nolint:forcetypeassert // the column's type
	case "shards":
		if text(1) != "" {
			return []event{taken{Shard: number(0), Holder: text(1)}}
		}
	}
	return nil
}

// delivered is the kind of an event of the audit.
const delivered = "CredentialDelivered"

// recordedTogether are the deliveries in a record of many.
func recordedTogether(record string, content []byte) (all []event) {
	var entries []struct {
		Kind       string `json:"kind"`
		Lease      string `json:"lease_uid"`
		Grant      string `json:"grant_uid"`
		Generation int64  `json:"generation"`
		Time       int64  `json:"time"`
	}
	if err := json.Unmarshal(content, &entries); err != nil {
		return []event{broke{fmt.Sprintf("record %s: %v", record, err)}}
	}
	for _, e := range entries {
		if e.Kind == delivered {
			all = append(all, recorded{Record: record, Lease: e.Lease, Grant: e.Grant, Generation: e.Generation, Time: e.Time, Together: true})
		}
	}
	return all
}

// goneOf is that rows are not there any more, for which that matters.
func goneOf(rows []event) (all []event) {
	for _, e := range rows {
		switch e := e.(type) {
		case version:
			e.Gone = true
			all = append(all, e)
		case asked:
			e.Gone = true
			all = append(all, e)
		}
	}
	return all
}

// row is a version as the vault has it.
type row struct {
	id, keyID, signingKey, state               string
	number                                     int64
	add, activate, retire, revoke, remove, end time.Time
}

func (e version) row() row {
	return row{
		id: e.ID, keyID: e.Key, signingKey: e.SigningKey, state: e.State, number: e.Number, add: sqldb.Time(e.Add), activate: sqldb.Time(e.Activate),
		retire: sqldb.Time(e.Retire), revoke: sqldb.Time(e.Revoke), remove: sqldb.Time(e.Remove), end: sqldb.Time(e.End),
	}
}
