// Package web serves the pages of consent, to administrators' browsers.
//
// It guarantees that a page is made from the broker's database alone, so that it shows while everything else is away; that
// nothing begins by following a link, only by pressing the button; that what a browser comes back with is judged by package
// consent and written as a whole or not at all; that nothing of a link, a state or a cookie is logged; that no page runs another
// script than ours, needs it, or has anything of anybody else's; and that anybody on the Internet may ask: sizes, rates, times, and numbers of requests, connections
// and live pages are bounded, for each source and all together. It does not know who opens a page: whoever has the link may.
//
// A source is an address, or the /64 of one; behind a trusted proxy, the rightmost address in X-Forwarded-For that is no trusted proxy's. A page that
// waits is told by server-sent events that something has changed, and then loads itself anew: what it says is said in one place, and a browser
// without scripts loads it again every five seconds instead.
//
// The tricky idea is how a browser is recognized. The state that goes through Entra ID shows up in addresses, histories and logs of others;
// what comes back with it is taken only from the browser that holds the other half, in a cookie which no other site can set or
// send (`__Host-`, SameSite=Lax). Each press has a cookie of its own name, so that two tabs do not disturb each other.
package web
