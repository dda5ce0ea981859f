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
	kinds   string
	columns []column
	rows    int
}

// column is a column's values, in the slice of its kind.
type column struct {
	texts    []string
	integers []int64
	bytes    [][]byte
}

// NewValues makes Values without rows. Kinds has a letter a column: t for text, which must be UTF-8 without NUL, i for integers, b for bytes.
func NewValues(kinds string) *Values {
	return &Values{kinds: kinds, columns: make([]column, len(kinds))}
}

// Add adds a row: a string, an integer or a []byte for each column, as its kind says. It keeps nothing of what it is given but the values.
func (v *Values) Add(row ...any) {
	for i, value := range row {
		c := &v.columns[i]
		switch v.kinds[i] {
		case 'i':
			c.integers = append(c.integers, reflect.ValueOf(value).Int())
		case 'b':
			c.bytes = append(c.bytes, reflect.ValueOf(value).Bytes())
		default:
			c.texts = append(c.texts, reflect.ValueOf(value).String())
		}
	}
	v.rows++
}

// Len is how many rows there are.
func (v *Values) Len() int { return v.rows }

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
		var column any = v.columns[i].texts
		kindName := "TEXT"
		switch kind {
		case 'i':
			kindName, column = "BIGINT", v.columns[i].integers
		case 'b':
			kindName, column = "BYTEA", v.columns[i].bytes
		}
		args = append(args, column)
		fmt.Fprintf(&arrays, "%sCAST($%d AS %s[])", separator, len(args), kindName)
		fmt.Fprintf(&names, "%scolumn%d", separator, i+1)
	}
	return fmt.Sprintf("(SELECT * FROM unnest(%s) AS u(%s))", &arrays, &names), args
}

func (v *Values) each(args []any) (string, []any) {
	rows := make([][]any, v.rows)
	for n := range rows {
		rows[n] = make([]any, len(v.kinds))
		for i, kind := range v.kinds {
			c := &v.columns[i]
			switch kind {
			case 'i':
				rows[n][i] = c.integers[n]
			case 'b':
				rows[n][i] = fmt.Sprintf("%x", c.bytes[n]) // JSON has no bytes
			default:
				rows[n][i] = c.texts[n]
			}
		}
	}
	list, _ := json.Marshal(rows) // of texts and integers it cannot fail
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
