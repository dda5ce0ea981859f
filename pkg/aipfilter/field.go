package aipfilter

import (
	"slices"
	"strings"
	"time"

	"go.einride.tech/aip/filtering"
)

// value is the right side of a comparison.
type value struct {
	text   string
	quoted bool
}

// any tells whether it is the star, which is there to ask whether a field has any value.
func (v value) any() bool { return v.text == "*" && !v.quoted }

const noSuchComparison = "the field cannot be compared in this way"

// Field makes the predicate of a comparison with a field, or says what is wrong with it.
type Field[T any] func(operator string, v value) (condition func(T) bool, problem string)

// compared is whether a three-way comparison is what the operator asks for; ok is false for an operator that asks for
// something else.
func compared(operator string) (is func(order int) bool, ok bool) {
	switch operator {
	case filtering.FunctionEquals:
		return func(order int) bool { return order == 0 }, true
	case filtering.FunctionNotEquals:
		return func(order int) bool { return order != 0 }, true
	case filtering.FunctionLessThan:
		return func(order int) bool { return order < 0 }, true
	case filtering.FunctionLessEquals:
		return func(order int) bool { return order <= 0 }, true
	case filtering.FunctionGreaterThan:
		return func(order int) bool { return order > 0 }, true
	case filtering.FunctionGreaterEquals:
		return func(order int) bool { return order >= 0 }, true
	default:
		return nil, false
	}
}

// wildcard stands for any bytes, or none, in a text after `=` or `!=`.
const wildcard = "*"

// Text is a field that is a text. It is compared by its bytes, but that a star is a wildcard to `=` and `!=`; a colon finds a part of it.
func Text[T any](get func(T) string) Field[T] {
	return func(operator string, v value) (func(T) bool, string) {
		is, ok := compared(operator)
		equals := operator == filtering.FunctionEquals
		switch {
		case strings.Contains(v.text, wildcard) && (equals || operator == filtering.FunctionNotEquals):
			parts := strings.Split(v.text, wildcard)
			return func(of T) bool { return matches(get(of), parts) == equals }, ""
		case ok:
			return func(of T) bool { return is(strings.Compare(get(of), v.text)) }, ""
		case v.any():
			return func(of T) bool { return get(of) != "" }, ""
		default:
			return func(of T) bool { return strings.Contains(get(of), v.text) }, ""
		}
	}
}

// matches tells whether a text is these parts with anything between them; there are at least two.
func matches(text string, parts []string) bool {
	text, ok := strings.CutPrefix(text, parts[0])
	last := len(parts) - 1
	for _, part := range parts[1:last] {
		if ok {
			_, text, ok = strings.Cut(text, part)
		}
	}
	return ok && strings.HasSuffix(text, parts[last])
}

// Texts is a field that is a list of texts. A colon finds one that is equal.
func Texts[T any](get func(T) []string) Field[T] {
	return func(operator string, v value) (func(T) bool, string) {
		switch {
		case operator != filtering.FunctionHas:
			return nil, "a list has a colon before what it should contain"
		case v.any():
			return func(of T) bool { return len(get(of)) > 0 }, ""
		default:
			return func(of T) bool { return slices.Contains(get(of), v.text) }, ""
		}
	}
}

// Enum is a field that is one of the values of an enum, whose names begin with prefix and go on with the word that get
// gives. Filters may leave out the prefix.
func Enum[T any, W ~string](values map[string]int32, prefix string, get func(T) W) Field[T] {
	return func(operator string, v value) (func(T) bool, string) {
		if operator == filtering.FunctionHas && v.any() {
			return func(of T) bool { return get(of) != "" }, ""
		}
		word, known := wordOf[W](values, prefix, v)
		switch {
		case operator != filtering.FunctionEquals && operator != filtering.FunctionNotEquals:
			return nil, noSuchComparison
		case !known:
			return nil, "the field has no such value"
		default:
			return func(of T) bool { return (get(of) == word) == (operator == filtering.FunctionEquals) }, ""
		}
	}
}

// Enums is a field that is a list of the values of an enum; see Enum and Texts.
func Enums[T any, W ~string](values map[string]int32, prefix string, get func(T) []W) Field[T] {
	return func(operator string, v value) (func(T) bool, string) {
		word, known := wordOf[W](values, prefix, v)
		switch {
		case operator != filtering.FunctionHas:
			return nil, "a list has a colon before what it should contain"
		case v.any():
			return func(of T) bool { return len(get(of)) > 0 }, ""
		case !known:
			return nil, "the field has no such value"
		default:
			return func(of T) bool { return slices.Contains(get(of), word) }, ""
		}
	}
}

// wordOf is the word of a value of an enum; the zero value has none.
func wordOf[W ~string](values map[string]int32, prefix string, v value) (word W, ok bool) {
	text := strings.TrimPrefix(v.text, prefix)
	return W(text), values[prefix+text] != 0
}

// Bool is a field that is true or false.
func Bool[T any](get func(T) bool) Field[T] {
	return func(operator string, v value) (func(T) bool, string) {
		wanted := v.text == "true"
		switch {
		case operator != filtering.FunctionEquals && operator != filtering.FunctionNotEquals:
			return nil, noSuchComparison
		case v.quoted || !wanted && v.text != "false":
			return nil, "the field is true or false"
		default:
			return func(of T) bool { return (get(of) == wanted) == (operator == filtering.FunctionEquals) }, ""
		}
	}
}

// Time is a field that is a time. A star after a colon asks whether it is set.
func Time[T any](get func(T) time.Time) Field[T] {
	return func(operator string, v value) (func(T) bool, string) {
		is, ok := compared(operator)
		switch {
		case !ok && v.any():
			return func(of T) bool { return !get(of).IsZero() }, ""
		case !ok:
			return nil, noSuchComparison
		}
		wanted, err := time.Parse(time.RFC3339, v.text)
		if err != nil {
			return nil, "a time must be like \"2006-01-02T15:04:05Z\" (RFC 3339)"
		}
		return func(of T) bool { return is(get(of).Compare(wanted)) }, ""
	}
}
