// Package odata reads the few OData query options that directory clients use:
// $filter over strings and booleans, and resource keys such as
// applications(appId='…').
package odata

import (
	"errors"
	"fmt"
	"strings"
)

// ErrSyntax says that an expression is not one this package reads.
var ErrSyntax = errors.New("invalid filter clause")

// maxDepth bounds the nesting of a filter, and with it the stack.
const maxDepth = 32

// Filter decides about one item, whose properties the function gives: their
// values as text, and whether there is such a property to filter by.
type Filter func(property func(name string) (values []string, known bool)) (bool, error)

// ParseFilter reads a $filter: eq, ne, in, startsWith, endsWith, contains, and,
// or, not, parentheses, and any() over a collection of strings by eq.
func ParseFilter(text string) (Filter, error) {
	tokens, err := scan(text)
	if err != nil {
		return nil, err
	}
	p := &parser{tokens: tokens}
	f, err := p.or(0)
	if err != nil {
		return nil, err
	}
	if !p.done() {
		return nil, fmt.Errorf("%w: unexpected %q", ErrSyntax, p.peek().text)
	}
	return f, nil
}

type token struct {
	text   string
	quoted bool
}

func scan(text string) ([]token, error) {
	var out []token
	for i := 0; i < len(text); {
		switch b := text[i]; { //nolint:staticcheck // the default case below is a range
		case b == ' ' || b == '\t':
			i++
		case b == '(' || b == ')' || b == ',' || b == ':':
			out = append(out, token{text: string(b)})
			i++
		case b == '\'':
			value, length, err := unquote(text[i:])
			if err != nil {
				return nil, err
			}
			out = append(out, token{text: value, quoted: true})
			i += length
		default:
			n := strings.IndexAny(text[i:], " \t(),:'")
			if n < 0 {
				n = len(text) - i
			}
			out = append(out, token{text: text[i : i+n]})
			i += n
		}
	}
	return out, nil
}

// unquote reads a literal at the start of text; two quotes in it stand for one.
func unquote(text string) (value string, length int, err error) {
	var b strings.Builder
	for i := 1; i < len(text); i++ {
		if text[i] != '\'' {
			b.WriteByte(text[i])
			continue
		}
		if i+1 < len(text) && text[i+1] == '\'' {
			b.WriteByte('\'')
			i++
			continue
		}
		return b.String(), i + 1, nil
	}
	return "", 0, fmt.Errorf("%w: a quote is not closed", ErrSyntax)
}

type parser struct {
	tokens []token
	at     int
}

func (p *parser) done() bool { return p.at >= len(p.tokens) }

func (p *parser) peek() token {
	if p.done() {
		return token{}
	}
	return p.tokens[p.at]
}

func (p *parser) next() token {
	t := p.peek()
	p.at++
	return t
}

// word takes an unquoted token if it is next.
func (p *parser) word(text string) bool {
	t := p.peek()
	if p.done() || t.quoted || !strings.EqualFold(t.text, text) {
		return false
	}
	p.at++
	return true
}

func (p *parser) expect(text string) error {
	if !p.word(text) {
		return fmt.Errorf("%w: expected %q", ErrSyntax, text)
	}
	return nil
}

func (p *parser) or(depth int) (Filter, error) {
	return p.chain("or", depth, p.and, func(a, b bool) bool { return a || b })
}

func (p *parser) and(depth int) (Filter, error) {
	return p.chain("and", depth, p.unary, func(a, b bool) bool { return a && b })
}

func (p *parser) chain(word string, depth int, operand func(int) (Filter, error), join func(a, b bool) bool) (Filter, error) {
	first, err := operand(depth)
	if err != nil {
		return nil, err
	}
	all := []Filter{first}
	for p.word(word) {
		f, err := operand(depth)
		if err != nil {
			return nil, err
		}
		all = append(all, f)
	}
	if len(all) == 1 {
		return first, nil
	}
	return func(property func(string) ([]string, bool)) (bool, error) {
		result, err := all[0](property)
		for _, f := range all[1:] {
			v, e := f(property)
			err = errors.Join(err, e)
			result = join(result, v)
		}
		return result, err
	}, nil
}

func (p *parser) unary(depth int) (Filter, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("%w: nested too deeply", ErrSyntax)
	}
	switch {
	case p.word("not"):
		f, err := p.unary(depth + 1)
		if err != nil {
			return nil, err
		}
		return func(property func(string) ([]string, bool)) (bool, error) {
			v, err := f(property)
			return !v, err
		}, nil
	case p.word("("):
		f, err := p.or(depth + 1)
		if err != nil {
			return nil, err
		}
		return f, p.expect(")")
	}
	return p.comparison()
}

func (p *parser) comparison() (Filter, error) {
	name, err := p.name()
	if err != nil {
		return nil, err
	}
	if p.word("(") {
		return p.function(name)
	}
	switch {
	case p.word("eq"):
		want, err := p.value()
		return test(name, func(v string) bool { return strings.EqualFold(v, want) }), err
	case p.word("ne"):
		want, err := p.value()
		f := test(name, func(v string) bool { return strings.EqualFold(v, want) })
		return func(property func(string) ([]string, bool)) (bool, error) {
			v, err := f(property)
			return !v, err
		}, err
	case p.word("in"):
		return p.in(name)
	}
	return nil, fmt.Errorf("%w: %q is not an operator", ErrSyntax, p.peek().text)
}

func (p *parser) in(name string) (Filter, error) {
	if err := p.expect("("); err != nil {
		return nil, err
	}
	var wants []string
	for {
		v, err := p.value()
		if err != nil {
			return nil, err
		}
		wants = append(wants, v)
		if !p.word(",") {
			break
		}
	}
	return test(name, func(v string) bool {
		for _, w := range wants {
			if strings.EqualFold(v, w) {
				return true
			}
		}
		return false
	}), p.expect(")")
}

// function reads the rest of startsWith(name,'x') and its like, or of any().
func (p *parser) function(name string) (Filter, error) {
	if collection, ok := strings.CutSuffix(name, "/any"); ok {
		return p.any(collection)
	}
	var match func(v, want string) bool
	switch strings.ToLower(name) {
	case "startswith":
		match = strings.HasPrefix
	case "endswith":
		match = strings.HasSuffix
	case "contains":
		match = strings.Contains
	default:
		return nil, fmt.Errorf("%w: %q is not a function", ErrSyntax, name)
	}
	property, err := p.name()
	if err != nil {
		return nil, err
	}
	if err := p.expect(","); err != nil {
		return nil, err
	}
	want, err := p.value()
	if err != nil {
		return nil, err
	}
	want = strings.ToLower(want)
	return test(property, func(v string) bool { return match(strings.ToLower(v), want) }), p.expect(")")
}

func (p *parser) any(collection string) (Filter, error) {
	variable, err := p.name()
	if err != nil {
		return nil, err
	}
	if err := p.expect(":"); err != nil {
		return nil, err
	}
	if err := p.expect(variable); err != nil {
		return nil, err
	}
	if err := p.expect("eq"); err != nil {
		return nil, err
	}
	want, err := p.value()
	if err != nil {
		return nil, err
	}
	return test(collection, func(v string) bool { return strings.EqualFold(v, want) }), p.expect(")")
}

func (p *parser) name() (string, error) {
	t := p.next()
	if t.quoted || t.text == "" || strings.ContainsAny(t.text, "(),:") {
		return "", fmt.Errorf("%w: expected a property instead of %q", ErrSyntax, t.text)
	}
	return t.text, nil
}

func (p *parser) value() (string, error) {
	t := p.next()
	if !t.quoted && (t.text == "" || strings.ContainsAny(t.text, "(),:")) {
		return "", fmt.Errorf("%w: expected a value instead of %q", ErrSyntax, t.text)
	}
	return t.text, nil
}

// test is true when any of the property's values passes.
func test(name string, pass func(string) bool) Filter {
	return func(property func(string) ([]string, bool)) (bool, error) {
		values, known := property(name)
		if !known {
			return false, fmt.Errorf("%w: unsupported or invalid query filter clause specified for property '%s'", ErrSyntax, name)
		}
		for _, v := range values {
			if pass(v) {
				return true, nil
			}
		}
		return false, nil
	}
}

// ParseKey splits a path segment such as applications(appId='x') into the
// collection, the key's name and its value; a segment without a key has neither.
func ParseKey(segment string) (collection, name, value string, err error) {
	open := strings.IndexByte(segment, '(')
	if open < 0 {
		return segment, "", "", nil
	}
	collection, inner := segment[:open], segment[open+1:]
	inner, found := strings.CutSuffix(inner, ")")
	if !found {
		return "", "", "", fmt.Errorf("%w: key is not closed", ErrSyntax)
	}
	name, literal := "id", inner
	if before, after, found := strings.Cut(inner, "="); found && !strings.HasPrefix(inner, "'") {
		name, literal = strings.TrimSpace(before), strings.TrimSpace(after)
	}
	if !strings.HasPrefix(literal, "'") {
		return "", "", "", fmt.Errorf("%w: key is not quoted", ErrSyntax)
	}
	value, length, err := unquote(literal)
	if err != nil {
		return "", "", "", err
	}
	if length != len(literal) {
		return "", "", "", fmt.Errorf("%w: key goes on after its end", ErrSyntax)
	}
	return collection, name, value, nil
}
