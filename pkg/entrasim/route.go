package entrasim

import (
	"net"
	"net/http"
	"net/url"
	"strings"
)

// adminPath is where the admin plane is, on any host.
const adminPath = "/admin"

// locate finds a request's plane, the only one that is served where it came in or,
// if that is empty, by path or host name; and the path's segments within it.
func locate(r *http.Request, only Plane) (Plane, []string) {
	segments := split(r.URL)
	if len(segments) > 0 && segments[0] == strings.TrimPrefix(adminPath, "/") && (only == "" || only == PlaneAdmin) {
		return PlaneAdmin, segments[1:]
	}
	if only != "" {
		return only, segments
	}
	host := r.Host
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	first, _, dotted := strings.Cut(strings.ToLower(host), ".")
	if dotted {
		switch first {
		case "login", "sts":
			return PlaneLogin, segments
		case "graph", "dod-graph", "microsoftgraph":
			return PlaneGraph, segments
		case "management":
			return PlaneARM, segments
		}
	}
	if len(segments) == 0 {
		return PlaneLogin, segments
	}
	switch strings.ToLower(segments[0]) {
	case "v1.0", "beta":
		return PlaneGraph, segments
	case "subscriptions", "providers", "tenants", "metadata":
		return PlaneARM, segments
	}
	return PlaneLogin, segments
}

// split returns the unescaped segments of a path. An escaped slash stays inside
// its segment.
func split(u *url.URL) []string {
	var out []string
	for part := range strings.SplitSeq(u.EscapedPath(), "/") {
		if part == "" {
			continue
		}
		if plain, err := url.PathUnescape(part); err == nil {
			part = plain
		}
		out = append(out, part)
	}
	return out
}
