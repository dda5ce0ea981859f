// Package aipfilter makes predicates of filters (AIP-160): conditions on the declared fields of a resource, joined by AND, OR,
// NOT and parentheses. A predicate is evaluated in Go, over the domain's object.
//
// It is stricter than the AIP where that lets a service be: fields that are not declared, comparisons that a field's type
// does not have, functions and bare words are refused, with the position and the reason, before anything is read. It never
// guesses, so that a filter with a mistake in it is an error and not an empty list.
package aipfilter

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"go.einride.tech/aip/filtering"
	expr "google.golang.org/genproto/googleapis/api/expr/v1alpha1"
)

// The limits of a filter.
const (
	maxBytes = 2000
	maxDepth = 20
	maxTerms = 100
)

// Error is what is wrong with a filter.
type Error struct {
	// Position counts the filter's characters, from 1; 0 means the filter as a whole.
	Position int
	// Problem is a phrase.
	Problem string
}

func (e *Error) Error() string {
	if e.Position == 0 {
		return e.Problem
	}
	return fmt.Sprintf("is wrong at character %d: %s", e.Position, e.Problem)
}

// Fields are the fields that filters of a resource may name.
type Fields[T any] map[string]Field[T]

// Parse makes the predicate of a filter, nil for an empty one, which everything passes. Its errors are *Error.
func (f Fields[T]) Parse(filter string) (func(T) bool, error) {
	if strings.TrimSpace(filter) == "" {
		return nil, nil //nolint:nilnil // every resource passes
	}
	filter, err := prepare(filter)
	if err != nil {
		return nil, err
	}
	var parser filtering.Parser
	parser.Init(filter)
	parsed, err := parser.Parse()
	if err != nil {
		return nil, parseError(filter, err)
	}
	c := compiler[T]{fields: f, filter: filter, skipped: skipped(filter), positions: parsed.GetSourceInfo().GetPositions()}
	return c.condition(parsed.GetExpr())
}

// prepare looks at the words before the parser does, which calls itself for each parenthesis. It moves spaces from before a
// closing parenthesis, where the parser takes them for the beginning of another condition, to behind it; all else stays where
// it is.
func prepare(filter string) (string, error) {
	if len(filter) > maxBytes {
		return "", &Error{Problem: fmt.Sprintf("must have at most %d bytes", maxBytes)}
	}
	var lexer filtering.Lexer
	lexer.Init(filter)
	var prepared strings.Builder
	var spaces string
	depth, terms := 0, 0
	for {
		token, err := lexer.Lex()
		if err != nil {
			// The end, or what the parser will complain of.
			return prepared.String() + spaces + filter[prepared.Len()+len(spaces):], nil //nolint:nilerr // see above
		}
		at := utf8.RuneCountInString(filter[:token.Position.Offset]) + 1
		switch {
		case token.Type == filtering.TokenTypeWhitespace:
			spaces += token.Value
			continue
		case token.Type == filtering.TokenTypeRightParen:
			depth--
			prepared.WriteString(token.Value)
			continue
		case token.Type == filtering.TokenTypeLeftParen:
			depth++
		case token.Type.IsComparator():
			terms++
		}
		prepared.WriteString(spaces + token.Value)
		spaces = ""
		if depth > maxDepth {
			return "", &Error{Position: at, Problem: fmt.Sprintf("parentheses are nested more than %d deep", maxDepth)}
		}
		if terms > maxTerms {
			return "", &Error{Position: at, Problem: fmt.Sprintf("there are more than %d comparisons", maxTerms)}
		}
	}
}

// skipped is how many bytes the parser leaves out at the beginning, and does not count.
func skipped(filter string) int {
	return len(filter) - len(strings.TrimLeftFunc(filter, unicode.IsSpace))
}

// parseError says what the parser says of the innermost thing that it could not read.
func parseError(filter string, err error) error {
	problem := &Error{Problem: "cannot be read"}
	for ; err != nil; err = errors.Unwrap(err) {
		if at, ok := err.(interface {
			Position() filtering.Position
			Message() string
		}); ok {
			offset := min(skipped(filter)+int(at.Position().Offset), len(filter))
			problem.Position = utf8.RuneCountInString(filter[:offset]) + 1
			problem.Problem = strings.ReplaceAll(at.Message(), "token WS", "space")
		}
	}
	return problem
}

// compiler turns what was parsed into a predicate.
type compiler[T any] struct {
	fields    Fields[T]
	filter    string
	skipped   int
	positions map[int64]int32
}

func (c compiler[T]) offset(e *expr.Expr) int { return c.skipped + int(c.positions[e.GetId()]) }

func (c compiler[T]) refuse(e *expr.Expr, problem string) error {
	return &Error{Position: utf8.RuneCountInString(c.filter[:c.offset(e)]) + 1, Problem: problem}
}

func (c compiler[T]) condition(e *expr.Expr) (func(T) bool, error) {
	call := e.GetCallExpr()
	if call == nil {
		return nil, c.refuse(e, "a field must be compared with something")
	}
	args := call.GetArgs()
	switch operator := call.GetFunction(); operator {
	case filtering.FunctionAnd, filtering.FunctionOr, filtering.FunctionNot:
		return c.joined(e, operator, args)
	case filtering.FunctionFuzzyAnd:
		return nil, c.refuse(e, "conditions must be joined by AND or OR")
	case filtering.FunctionHas, filtering.FunctionEquals, filtering.FunctionNotEquals, filtering.FunctionLessThan,
		filtering.FunctionLessEquals, filtering.FunctionGreaterThan, filtering.FunctionGreaterEquals:
		return c.comparison(operator, args[0], args[1])
	default:
		return nil, c.refuse(e, "there are no functions")
	}
}

func (c compiler[T]) joined(e *expr.Expr, operator string, args []*expr.Expr) (func(T) bool, error) {
	conditions := make([]func(T) bool, len(args))
	for i, arg := range args {
		var err error
		if conditions[i], err = c.condition(arg); err != nil {
			return nil, err
		}
	}
	switch {
	case operator == filtering.FunctionNot && len(args) == 1:
		return func(of T) bool { return !conditions[0](of) }, nil
	case operator == filtering.FunctionAnd && len(args) == 2:
		return func(of T) bool { return conditions[0](of) && conditions[1](of) }, nil
	case operator == filtering.FunctionOr && len(args) == 2:
		return func(of T) bool { return conditions[0](of) || conditions[1](of) }, nil
	default:
		// The parser takes a keyword before a parenthesis for a function's name.
		return nil, c.refuse(e, "there are no functions")
	}
}

func (c compiler[T]) comparison(operator string, left, right *expr.Expr) (func(T) bool, error) {
	name := left.GetIdentExpr()
	if name == nil {
		return nil, c.refuse(left, "a comparison must begin with a field")
	}
	compile, ok := c.fields[name.GetName()]
	if !ok {
		return nil, c.refuse(left, "there is no such field to filter by")
	}
	var v value
	switch {
	case right.GetIdentExpr() != nil:
		v.text = right.GetIdentExpr().GetName()
	case isText(right):
		// The parser makes a text of the word after a colon.
		v.text = right.GetConstExpr().GetStringValue()
		v.quoted = strings.ContainsRune(`"'`, rune(c.filter[c.offset(right)]))
	case right.GetCallExpr() != nil:
		return nil, c.refuse(right, "a field must be compared with one value")
	default:
		return nil, c.refuse(right, "the value must be in quotes")
	}
	condition, problem := compile(operator, v)
	if problem != "" {
		at := right
		if problem == noSuchComparison {
			at = left
		}
		return nil, c.refuse(at, problem)
	}
	return condition, nil
}

func isText(e *expr.Expr) bool {
	_, ok := e.GetConstExpr().GetConstantKind().(*expr.Constant_StringValue)
	return ok
}
