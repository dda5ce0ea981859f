package resource

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// AutoAttachPrefix makes a label of an integration name a label of projects.
const AutoAttachPrefix = "autoattach:"

// AutoLabels are the labels of projects that an integration's labels name.
func AutoLabels(labels []string) []string {
	var named []string
	for _, label := range labels {
		if of, ok := strings.CutPrefix(label, AutoAttachPrefix); ok && of != "" {
			named = append(named, of)
		}
	}
	return named
}

// CheckLabels says what is wrong with the labels of an integration or a project that begin with AutoAttachPrefix: what follows must be a label that a
// project can have, which begins with neither a space nor an unprintable character, and which is there. Anything else would be meant to attach, and never would.
func CheckLabels(labels []string) []Violation {
	if !slices.ContainsFunc(labels, namesNoLabel) {
		return nil
	}
	return []Violation{{Field: "labels", Description: `must not have "` + AutoAttachPrefix + `" with nothing or a space after it: a label that projects can have follows at once`}}
}

func namesNoLabel(label string) bool {
	of, ok := strings.CutPrefix(label, AutoAttachPrefix)
	first, _ := utf8.DecodeRuneInString(of)
	return ok && (of == "" || unicode.In(first, unicode.C, unicode.Z))
}
