package attachment_test

import (
	"slices"
	"testing"
	"time"

	"phasekey.dev/services/registry/internal/attachment"
)

func TestAccessOf(t *testing.T) {
	for phase, want := range map[attachment.Phase]attachment.Access{
		attachment.Initializing: attachment.Read,
		attachment.Planning:     attachment.Read,
		attachment.Applying:     attachment.Write,
		attachment.Destroying:   attachment.Write,
		attachment.Performing:   attachment.Write,
		attachment.Testing:      attachment.Write,
		"":                      "",
		"planning":              "",
		"SOMETHING_NEW":         "",
	} {
		if got, ok := attachment.AccessOf(phase); got != want || ok != (want != "") {
			t.Errorf("AccessOf(%q) = %q, %t, want %q", phase, got, ok, want)
		}
	}
}

func TestSpec_Normal(t *testing.T) {
	both := []attachment.Access{attachment.Read, attachment.Write}
	for _, tt := range []struct {
		name string
		in   []attachment.Access
		want []attachment.Access
	}{
		{"none is both", nil, both},
		{"sorted", []attachment.Access{attachment.Write, attachment.Read}, both},
		{"once", []attachment.Access{attachment.Write, attachment.Write}, []attachment.Access{attachment.Write}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := attachment.Spec{Accesses: tt.in, SubscriptionID: "ABC"}.Normal()
			if !slices.Equal(got.Accesses, tt.want) || got.SubscriptionID != "abc" {
				t.Fatalf("got %+v", got)
			}
		})
	}
}

func TestWant_CountsChanges(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	a := attachment.New(now, attachment.Name{Account: "acme", Project: "p", ID: "i"}, "uid", attachment.Spec{})
	if same, changed := a.Want(now.Add(1), attachment.Spec{Accesses: []attachment.Access{attachment.Write, attachment.Read}}); changed || same.ETag() != a.ETag() {
		t.Fatalf("the same wanted again: %+v", same)
	}
	if next, changed := a.Want(now.Add(1), attachment.Spec{SubscriptionID: "x"}); !changed || next.ETag() == a.ETag() {
		t.Fatalf("another subscription: %+v", next)
	}
}
