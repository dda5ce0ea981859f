package story

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/html"
	"golang.org/x/net/html/atom"
)

// maxPage bounds what is read of an answer.
const maxPage = 1 << 20

// browser goes through pages as a person's browser does that runs no scripts: it follows links, fills in forms, keeps cookies.
type browser struct{ http *http.Client }

func newBrowser(transport http.RoundTripper) (*browser, error) {
	jar, err := cookiejar.New(nil)
	if err != nil {
		return nil, err
	}
	return &browser{http: &http.Client{Timeout: 10 * time.Second, Transport: transport, Jar: jar}}, nil
}

// page is what a browser shows.
type page struct {
	at     *url.URL
	status int
	// title is the first heading; text all there is to read.
	title, text string
	// blocks are the preformatted ones, such as commands to copy.
	blocks []string
	form   *form
}

// form is a page's form, filled in as the page has it.
type form struct {
	action string
	values url.Values
}

// open follows a link.
func (b *browser) open(ctx context.Context, link string) (page, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, link, nil)
	if err != nil {
		return page{}, err
	}
	return b.show(request)
}

// onward is where a page sends the browser on to at once; empty for nowhere.
func onward(meta *html.Node) string {
	if !strings.EqualFold(attribute(meta, "http-equiv"), "refresh") {
		return ""
	}
	delay, to, _ := strings.Cut(attribute(meta, "content"), ";")
	to, found := strings.CutPrefix(strings.TrimSpace(to), "url=")
	if !found || strings.TrimSpace(delay) != "0" {
		return ""
	}
	return to
}

// press submits a page's form, with what else a person enters, by name and value.
func (b *browser) press(ctx context.Context, p page, entered ...string) (page, error) {
	if p.form == nil {
		return page{}, fmt.Errorf("page %q has no form", p.title)
	}
	action, err := p.at.Parse(p.form.action)
	if err != nil {
		return page{}, err
	}
	values := maps.Clone(p.form.values)
	for pair := range slices.Chunk(entered, 2) {
		values.Set(pair[0], pair[1])
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, action.String(), strings.NewReader(values.Encode()))
	if err != nil {
		return page{}, err
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	request.Header.Set("Origin", p.at.Scheme+"://"+p.at.Host)
	request.Header.Set("Sec-Fetch-Site", "same-origin")
	return b.show(request)
}

func (b *browser) show(request *http.Request) (page, error) {
	response, err := b.http.Do(request)
	if err != nil {
		// The address is a secret: whoever has it acts in the session.
		if failure := (*url.Error)(nil); errors.As(err, &failure) {
			err = failure.Err
		}
		return page{}, fmt.Errorf("browser: %w", err)
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, maxPage))
	if err = errors.Join(err, response.Body.Close()); err != nil {
		return page{}, err
	}
	p := page{at: response.Request.URL, status: response.StatusCode}
	root, err := html.Parse(bytes.NewReader(body))
	if err != nil {
		return page{}, err
	}
	p.text = textOf(root)
	for node := range root.Descendants() {
		if to := onward(node); to != "" {
			return b.open(request.Context(), to)
		}
		if node.Type != html.ElementNode {
			continue
		}
		switch node.DataAtom {
		case atom.H1:
			if p.title == "" {
				p.title = textOf(node)
			}
		case atom.Pre:
			p.blocks = append(p.blocks, textOf(node))
		case atom.Form:
			if p.form == nil && strings.EqualFold(attribute(node, "method"), "post") {
				p.form = &form{action: attribute(node, "action"), values: hiddenOf(node)}
			}
		default: // nothing that the story looks at
		}
	}
	return p, nil
}

func hiddenOf(form *html.Node) url.Values {
	values := url.Values{}
	for node := range form.Descendants() {
		if node.DataAtom == atom.Input && attribute(node, "type") == "hidden" {
			values.Add(attribute(node, "name"), attribute(node, "value"))
		}
	}
	return values
}

func attribute(node *html.Node, key string) string {
	for _, a := range node.Attr {
		if a.Key == key {
			return a.Val
		}
	}
	return ""
}

// textOf is what there is to read in a node, its white space folded.
func textOf(node *html.Node) string {
	var text strings.Builder
	for n := range node.Descendants() {
		if n.Type == html.TextNode && n.Parent.DataAtom != atom.Style && n.Parent.DataAtom != atom.Script {
			text.WriteString(n.Data)
			text.WriteByte(' ')
		}
	}
	return strings.Join(strings.Fields(text.String()), " ")
}
