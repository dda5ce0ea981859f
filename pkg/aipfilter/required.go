package aipfilter

import (
	"strings"

	"go.einride.tech/aip/filtering"
	expr "google.golang.org/genproto/googleapis/api/expr/v1alpha1"
)

// Required are the values that fields must have for a filter to be passed: those of its comparisons by `=` that are joined by
// nothing but AND, each as it was written, unless it has a wildcard. A database may look for them first; the predicate judges what it finds. What the
// filter does not name so is not in it, and of a text that Parse does not take nothing is. Where it names a field twice one of the
// values is in it, for both are required.
func Required(filter string) map[string]string {
	e := parsed(filter)
	if e == nil {
		return nil
	}
	found := map[string]string{}
	require(e, found)
	return found
}

// Bound is a value that a field must not be below, or not above.
type Bound struct {
	Lower bool
	Value string
}

// Bounds are those that a filter requires of a field: of its comparisons by `<`, `<=`, `>`, `>=` and `=` that are joined by nothing but AND. What is
// equal to a bound may pass the filter or not; otherwise it is as Required.
func Bounds(filter, field string) []Bound {
	var found []Bound
	if e := parsed(filter); e != nil {
		bound(e, field, &found)
	}
	return found
}

func bound(e *expr.Expr, field string, found *[]Bound) {
	call := e.GetCallExpr()
	args := call.GetArgs()
	if call.GetFunction() == filtering.FunctionAnd {
		for _, arg := range args {
			bound(arg, field, found)
		}
		return
	}
	if len(args) != 2 || args[0].GetIdentExpr().GetName() != field || !isText(args[1]) {
		return
	}
	value := args[1].GetConstExpr().GetStringValue()
	switch call.GetFunction() {
	case filtering.FunctionLessThan, filtering.FunctionLessEquals:
		*found = append(*found, Bound{Value: value})
	case filtering.FunctionGreaterThan, filtering.FunctionGreaterEquals:
		*found = append(*found, Bound{Lower: true, Value: value})
	case filtering.FunctionEquals:
		*found = append(*found, Bound{Value: value}, Bound{Lower: true, Value: value})
	}
}

// parsed is nil for what Parse does not take.
func parsed(filter string) *expr.Expr {
	filter, err := prepare(filter)
	if err != nil || strings.TrimSpace(filter) == "" {
		return nil
	}
	var parser filtering.Parser
	parser.Init(filter)
	parsed, err := parser.Parse()
	if err != nil {
		return nil
	}
	return parsed.GetExpr()
}

func require(e *expr.Expr, found map[string]string) {
	call := e.GetCallExpr()
	switch args := call.GetArgs(); {
	case call.GetFunction() == filtering.FunctionAnd:
		for _, arg := range args {
			require(arg, found)
		}
	case call.GetFunction() == filtering.FunctionEquals && len(args) == 2 && args[0].GetIdentExpr() != nil:
		right := args[1]
		value := right.GetIdentExpr().GetName()
		if isText(right) {
			value = right.GetConstExpr().GetStringValue()
		}
		if (isText(right) || right.GetIdentExpr() != nil) && !strings.Contains(value, wildcard) {
			found[args[0].GetIdentExpr().GetName()] = value
		}
	}
}
