package attachment_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"phasekey.dev/services/registry/internal/attachment"
	"phasekey.dev/services/registry/internal/integration"
	"phasekey.dev/services/registry/internal/project"
	"phasekey.dev/services/registry/internal/resource"
)

const (
	read  = attachment.Read
	write = attachment.Write
)

var net = project.Project{Name: project.Name{Account: "acme", ID: "net"}, UID: "p-net", Spec: project.Spec{Labels: []string{"dev", "eu", "prod"}}}

// auto is an integration that is attached by itself to what has one of the labels.
func auto(id string, labels ...string) integration.Integration {
	i := integration.Integration{
		Name: integration.Name{Account: "acme", ID: id}, UID: "i-" + id,
		Spec: integration.Spec{AutoAttach: true, DefaultSubscriptionID: "default", Labels: []string{"prod"}},
	}
	for _, label := range labels {
		i.Spec.Labels = append(i.Spec.Labels, resource.AutoAttachPrefix+label)
	}
	return i
}

func but(i integration.Integration, change func(i *integration.Integration)) integration.Integration {
	change(&i)
	return i
}

func deleting(i *integration.Integration) { i.DeleteTime = time.Unix(1, 0) }

// explicit attaches an integration to net.
func explicit(id, subscription string, accesses ...attachment.Access) attachment.Attachment {
	return attachment.Attachment{
		Name: attachment.Name{Account: "acme", Project: "net", ID: id}, UID: "a-" + id, IntegrationUID: "i-" + id, ProjectUID: "p-net",
		Spec: attachment.Spec{Accesses: accesses, SubscriptionID: subscription}.Normal(),
	}
}

// said is a candidate and what comes of it, in words.
func said(e attachment.Effective) string {
	why := "by " + strings.Join(e.Labels, ",")
	if e.Explicit != nil {
		why = "attached"
	}
	text := fmt.Sprintf("%s %s in %s: %v", e.Integration.Name.ID, why, e.SubscriptionID(), e.Gives)
	for _, o := range e.Outranked {
		text += fmt.Sprintf(", %s is %s's", o.Access, o.By.ID)
	}
	return text
}

func TestCandidates_AndTheirRank(t *testing.T) {
	for _, tt := range []struct {
		name     string
		explicit []attachment.Attachment
		of       []integration.Integration
		want     []string
	}{
		{"nothing", nil, nil, nil},
		{"attached for both", []attachment.Attachment{explicit("a", "")}, []integration.Integration{auto("a")},
			[]string{"a attached in default: [READ WRITE]"}},
		{"attached in a subscription of its own", []attachment.Attachment{explicit("a", "own")}, []integration.Integration{auto("a")},
			[]string{"a attached in own: [READ WRITE]"}},
		{"by a label", nil, []integration.Integration{auto("a", "prod")}, []string{"a by prod in default: [READ WRITE]"}},
		{"by two labels of three", nil, []integration.Integration{auto("a", "us", "prod", "dev")}, []string{"a by dev,prod in default: [READ WRITE]"}},
		{"another label", nil, []integration.Integration{auto("a", "us"), auto("b", "Prod"), auto("c", "pro"), auto("d", "")}, nil},
		{"the same label of its own", nil, []integration.Integration{auto("a")}, nil},
		{"switched off", nil, []integration.Integration{but(auto("a", "prod"), func(i *integration.Integration) { i.Spec.AutoAttach = false })}, nil},
		{"automatic ones by name", nil, []integration.Integration{auto("c", "eu"), auto("a-b", "dev"), auto("a", "prod"), auto("a0", "prod")},
			[]string{"a by prod in default: [READ WRITE]", "a-b by dev in default: [], READ is a's, WRITE is a's", "a0 by prod in default: [], READ is a's, WRITE is a's", "c by eu in default: [], READ is a's, WRITE is a's"}},
		{"explicit ones first, each access apart", []attachment.Attachment{explicit("x", "", write)}, []integration.Integration{auto("a", "prod"), auto("b", "prod"), auto("x")},
			[]string{"x attached in default: [WRITE]", "a by prod in default: [READ], WRITE is x's", "b by prod in default: [], READ is a's, WRITE is x's"}},
		{"two explicit ones", []attachment.Attachment{explicit("y", "own", read), explicit("x", "", write)}, []integration.Integration{auto("y"), auto("x"), auto("a", "prod")},
			[]string{"x attached in default: [WRITE]", "y attached in own: [READ]", "a by prod in default: [], READ is y's, WRITE is x's"}},
		{"what is attached for READ gets no WRITE by a label", []attachment.Attachment{explicit("a", "", read)}, []integration.Integration{auto("a", "prod")},
			[]string{"a attached in default: [READ]"}},
		{"but another one does", []attachment.Attachment{explicit("a", "", read)}, []integration.Integration{auto("a", "prod"), auto("b", "prod")},
			[]string{"a attached in default: [READ]", "b by prod in default: [WRITE], READ is a's"}},
		{"being deleted", []attachment.Attachment{explicit("x", "", write)}, []integration.Integration{but(auto("x"), deleting), but(auto("a", "prod"), deleting), auto("b", "prod")},
			[]string{"b by prod in default: [READ WRITE]"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			candidates := attachment.Candidates(net, tt.explicit, tt.of)
			var got []string
			for i, e := range attachment.Rank(candidates) {
				got = append(got, said(e))
				if i > 0 && candidates[i-1].Place() >= e.Place() {
					t.Errorf("place %q, then %q", candidates[i-1].Place(), e.Place())
				}
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("got %q\nwant %q", got, tt.want)
			}
			// What is said to give an access is what is resolved.
			for _, access := range []attachment.Access{read, write} {
				resolved, err := attachment.Resolve(access, net, candidates)
				giver := slices.IndexFunc(attachment.Rank(candidates), func(e attachment.Effective) bool { return slices.Contains(e.Gives, access) })
				switch {
				case giver < 0 && errors.Is(err, attachment.ErrNothingAttached):
				case err != nil || giver < 0 || resolved.Integration.UID != candidates[giver].Integration.UID || resolved.Access != access || resolved.ProjectUID != "p-net":
					t.Errorf("%s: resolved %+v, %v", access, resolved, err)
				}
			}
		})
	}
}

func TestAutomaticAfter(t *testing.T) {
	candidates := attachment.Candidates(net, []attachment.Attachment{explicit("x", "")}, []integration.Integration{auto("x"), auto("a", "prod")})
	for place, want := range map[string]string{"": "", candidates[0].Place(): "", candidates[1].Place(): "accounts/acme/integrations/a"} {
		if got := attachment.AutomaticAfter(place); got != want {
			t.Errorf("after %q: %q, want %q", place, got, want)
		}
	}
}

func bare(i *integration.Integration) { i.Spec.DefaultSubscriptionID = "" }

func TestResolve_SaysWhatIsMissing(t *testing.T) {
	for _, tt := range []struct {
		name       string
		candidates []attachment.Candidate
		reason     error
		says       string
		metadata   map[string]string
	}{
		{"nothing", nil, attachment.ErrNothingAttached, "attach an integration to it for WRITE, or give it a label that an integration with auto_attach names after autoattach:",
			map[string]string{"access": "WRITE", "project": "accounts/acme/projects/net"}},
		{"no subscription of what is attached, though the next has one",
			attachment.Candidates(net, []attachment.Attachment{explicit("x", "")}, []integration.Integration{but(auto("x"), bare), auto("a", "prod")}),
			attachment.ErrNoSubscription, "give accounts/acme/projects/net/attachments/x one, or accounts/acme/integrations/x a default",
			map[string]string{"attachment": "accounts/acme/projects/net/attachments/x", "integration": "accounts/acme/integrations/x"}},
		{"no subscription by a label", attachment.Candidates(net, nil, []integration.Integration{but(auto("a", "prod"), bare)}),
			attachment.ErrNoSubscription, "give accounts/acme/integrations/a a default", map[string]string{"integration": "accounts/acme/integrations/a", "attachment": ""}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := attachment.Resolve(write, net, tt.candidates)
			var refusal *resource.Error
			if !errors.Is(err, tt.reason) || !errors.As(err, &refusal) || !strings.Contains(err.Error(), tt.says) {
				t.Fatalf("got %v", err)
			}
			for key, want := range tt.metadata {
				if refusal.Metadata[key] != want {
					t.Errorf("metadata %s is %q, want %q", key, refusal.Metadata[key], want)
				}
			}
		})
	}
}
