package main

import (
	"flag"
	"fmt"
	"io"
	"strings"
)

// group is what flags have in common.
type group struct{ title, names string }

// groups are all flags, in the order in which somebody new wants to know them.
func groups() []group {
	return []group{
		{"Where it listens", "listen domain base-url listen-login listen-graph listen-arm listen-admin open-admin"},
		{"What clients trust", "tls names cert key"},
		{"What it keeps", "state journal-life"},
		{"How it behaves", "lag replicas seed token-life secret-before-principal consent-race lock-at-home max-credentials issuer-ca"},
		{"What goes wrong of its own accord", "unlimited conflicts conflict-window removal-failures login-loop"},
		{"What it says", "verbose"},
	}
}

// usage explains the flags by what they are for; the flag package would list
// them by the alphabet.
func usage(f *flag.FlagSet, w io.Writer) {
	_, _ = fmt.Fprint(w, `Simulates Entra ID's login, Microsoft Graph and Azure Resource Manager over HTTPS, until it is interrupted.
Once it listens it prints where each of them is, and the file with the CA to trust.

  entrasim                                     all on 127.0.0.1:8443, told apart by path
  entrasim -state DIR -lag 0s-10s              remembers, and lags as the real one does
  entrasim -domain azure.test -listen :443     login.azure.test, graph.azure.test, management.azure.test
  entrasim -listen-graph 127.0.0.1:8444        a port of its own for Graph
  entrasim -lag 0s-3s,secret=4s-18s,removal=1m also graph, application, federated, principal, role
`)
	for _, g := range groups() {
		_, _ = fmt.Fprintf(w, "\n%s\n", g.title)
		for name := range strings.FieldsSeq(g.names) {
			of := f.Lookup(name)
			kind, text := flag.UnquoteUsage(of)
			if of.DefValue != "" && of.DefValue != "false" && of.DefValue != "0" && of.DefValue != "0s" {
				text += " (" + of.DefValue + ")"
			}
			_, _ = fmt.Fprintf(w, "  %-38s %s\n", strings.TrimSpace("-"+name+" "+kind), text)
		}
	}
}
