package sqldb

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
)

// Values are rows that a statement has from the program, as by a VALUES clause. However many they are, the statement's text is the same, so it is prepared once: PostgreSQL gets an
// array for each column, SQLite one text of JSON.
type Values struct {
	kinds string
	rows  [][]any
}

// NewValues makes Values without rows. Kinds has a letter a column: t for text, which must be UTF-8 without NUL, i for integers, b for bytes.
func NewValues(kinds string) *Values { return &Values{kinds: kinds} }

// Add adds a row: a string, an integer or a []byte for each column, as its kind says.
func (v *Values) Add(row ...any) { v.rows = append(v.rows, row) }

// Len is how many rows there are.
func (v *Values) Len() int { return len(v.rows) }

// Values is the rows' place in the FROM clause of a statement, without a name, and the statement's parameters: those given, from $1 on, and after them what the rows need.
// The columns are called column1, column2 and so on.
func (t Tx) Values(v *Values, args ...any) (from string, all []any) {
	if t.driver == DriverPostgres {
		return v.unnest(args)
	}
	return v.each(args)
}

func (v *Values) unnest(args []any) (string, []any) {
	var arrays, names strings.Builder
	for i, kind := range v.kinds {
		separator := ", "
		if i == 0 {
			separator = ""
		}
		var column any
		kindName := "TEXT"
		switch kind {
		case 'i':
			kindName, column = "BIGINT", columnOf(v.rows, i, reflect.Value.Int)
		case 'b':
			kindName, column = "BYTEA", columnOf(v.rows, i, reflect.Value.Bytes)
		default:
			column = columnOf(v.rows, i, reflect.Value.String)
		}
		args = append(args, column)
		fmt.Fprintf(&arrays, "%sCAST($%d AS %s[])", separator, len(args), kindName)
		fmt.Fprintf(&names, "%scolumn%d", separator, i+1)
	}
	return fmt.Sprintf("(SELECT * FROM unnest(%s) AS u(%s))", &arrays, &names), args
}

func columnOf[T any](rows [][]any, i int, get func(reflect.Value) T) []T {
	out := make([]T, len(rows))
	for n, row := range rows {
		out[n] = get(reflect.ValueOf(row[i]))
	}
	return out
}

func (v *Values) each(args []any) (string, []any) {
	rows := v.rows
	if strings.ContainsRune(v.kinds, 'b') {
		rows = make([][]any, len(v.rows))
		for n, row := range v.rows {
			rows[n] = append([]any(nil), row...)
			for i, kind := range v.kinds {
				if kind == 'b' {
					rows[n][i] = fmt.Sprintf("%x", row[i]) // JSON has no bytes
				}
			}
		}
	}
	list, _ := json.Marshal(rows) // of texts and integers it cannot fail
	if rows == nil {
		list = []byte("[]")
	}
	args = append(args, string(list))
	var columns strings.Builder
	for i, kind := range v.kinds {
		separator, form := ", ", "%sjson_extract(value, '$[%d]') AS column%d"
		if i == 0 {
			separator = ""
		}
		if kind == 'b' {
			form = "%sunhex(json_extract(value, '$[%d]')) AS column%d"
		}
		fmt.Fprintf(&columns, form, separator, i, i+1)
	}
	return fmt.Sprintf("(SELECT %s FROM json_each($%d))", &columns, len(args)), args
}
