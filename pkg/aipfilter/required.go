package aipfilter

import (
	"strings"

	"go.einride.tech/aip/filtering"
	expr "google.golang.org/genproto/googleapis/api/expr/v1alpha1"
)

// Required are the values that fields must have for a filter to be passed: those of its comparisons by `=` that are joined by
// nothing but AND, each as it was written. A database may look for them first; the predicate judges what it finds. What the
// filter does not name so is not in it, and of a text that Parse does not take nothing is. Where it names a field twice one of the
// values is in it, for both are required.
func Required(filter string) map[string]string {
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
	found := map[string]string{}
	require(parsed.GetExpr(), found)
	return found
}

func require(e *expr.Expr, found map[string]string) {
	call := e.GetCallExpr()
	switch args := call.GetArgs(); {
	case call.GetFunction() == filtering.FunctionAnd:
		for _, arg := range args {
			require(arg, found)
		}
	case call.GetFunction() == filtering.FunctionEquals && len(args) == 2 && args[0].GetIdentExpr() != nil:
		name, right := args[0].GetIdentExpr().GetName(), args[1]
		switch {
		case right.GetIdentExpr() != nil:
			found[name] = right.GetIdentExpr().GetName()
		case isText(right):
			found[name] = right.GetConstExpr().GetStringValue()
		}
	}
}
