package confload

import (
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// decoder walks a file's tree beside the configuration.
type decoder struct{ problems []string }

// decode fills root from a file and returns all problems, each beginning with its line; ok is false if the file is not YAML at
// all.
func decode(b []byte, root reflect.Value) (problems []string, ok bool) {
	file, err := parser.ParseBytes(b, 0)
	if err != nil {
		return []string{syntaxProblem(err)}, false
	}
	var d decoder
	for i, doc := range file.Docs {
		if doc.Body == nil {
			continue
		}
		if i > 0 {
			d.problem(doc.Body, "", "a second document")
			break
		}
		d.node("", doc.Body, root)
	}
	return d.problems, true
}

// syntaxProblem says what the parser found, without the source around it.
func syntaxProblem(err error) string {
	var e yaml.Error
	if errors.As(err, &e) && e.GetToken() != nil {
		return fmt.Sprintf("%d: %s", e.GetToken().Position.Line, e.GetMessage())
	}
	first, _, _ := strings.Cut(err.Error(), "\n")
	return " " + first
}

// problem notes what is wrong with a node.
func (d *decoder) problem(n ast.Node, path, what string) {
	line := 1
	if t := n.GetToken(); t != nil && t.Position != nil {
		line = t.Position.Line
	}
	if path != "" {
		what = path + ": " + what
	}
	d.problems = append(d.problems, fmt.Sprintf("%d: %s", line, what))
}

// node puts a node into a value.
func (d *decoder) node(path string, n ast.Node, v reflect.Value) {
	switch n.(type) {
	case *ast.NullNode:
		// A key without a value keeps its default.
		return
	case *ast.AnchorNode, *ast.AliasNode, *ast.MergeKeyNode, *ast.TagNode:
		d.problem(n, path, "anchors, aliases and tags are not supported")
		return
	}
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		d.node(path, n, v.Elem())
		return
	}
	switch {
	case isScalar(v) && v.Kind() != reflect.Slice:
		d.scalar(path, n, v)
	case v.Kind() == reflect.Struct:
		d.structure(path, n, v)
	case v.Kind() == reflect.Map:
		d.mapping(path, n, v)
	case v.Kind() == reflect.Slice:
		d.list(path, n, v)
	default:
		d.problem(n, path, fmt.Sprintf("cannot be configured (%s)", v.Type()))
	}
}

// scalar decodes a leaf.
func (d *decoder) scalar(path string, n ast.Node, v reflect.Value) {
	if _, ok := n.(ast.ScalarNode); !ok {
		d.problem(n, path, "want a single value")
		return
	}
	if err := yaml.NodeToValue(n, v.Addr().Interface(), yaml.Strict()); err != nil {
		var e yaml.Error
		what := err.Error()
		if errors.As(err, &e) {
			what = e.GetMessage()
		}
		d.problem(n, path, what)
	}
}

// structure decodes a mapping whose keys are fields.
func (d *decoder) structure(path string, n ast.Node, v reflect.Value) {
	m, ok := n.(ast.MapNode)
	if !ok {
		d.problem(n, path, "want keys and values")
		return
	}
	fields := map[string]reflect.Value{}
	for _, f := range fieldsOf(v) {
		fields[f.name] = f.v
	}
	for it := m.MapRange(); it.Next(); {
		name := keyName(it.Key())
		f, ok := fields[name]
		if !ok {
			d.problem(it.Key(), "", fmt.Sprintf("unknown key %q", below(path, name)))
			continue
		}
		d.node(below(path, name), it.Value(), f)
	}
}

// mapping decodes a mapping with free keys.
func (d *decoder) mapping(path string, n ast.Node, v reflect.Value) {
	m, ok := n.(ast.MapNode)
	if !ok || v.Type().Key().Kind() != reflect.String {
		d.problem(n, path, "want keys and values")
		return
	}
	out := reflect.MakeMap(v.Type())
	for it := m.MapRange(); it.Next(); {
		name := keyName(it.Key())
		elem := reflect.New(v.Type().Elem()).Elem()
		d.node(below(path, name), it.Value(), elem)
		out.SetMapIndex(reflect.ValueOf(name).Convert(v.Type().Key()), elem)
	}
	v.Set(out)
}

// list decodes a sequence, which replaces the default.
func (d *decoder) list(path string, n ast.Node, v reflect.Value) {
	seq, ok := n.(*ast.SequenceNode)
	if !ok {
		d.problem(n, path, "want a list")
		return
	}
	out := reflect.MakeSlice(v.Type(), len(seq.Values), len(seq.Values))
	for i, item := range seq.Values {
		d.node(fmt.Sprintf("%s[%d]", path, i), item, out.Index(i))
	}
	v.Set(out)
}

// keyName is a key's text.
func keyName(k ast.MapKeyNode) string {
	if s, ok := k.(*ast.StringNode); ok {
		return s.Value
	}
	return strings.TrimSuffix(k.String(), ":")
}

// below is the path of a key.
func below(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}
