package translator

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"k8s.io/utils/ptr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"signalbox.dev/extproc/contract"
)

// filters is what the filters of a rule, or of one of its backendRefs, ask for.
type filters struct {
	Request, Response headerChanges
	Redirect          *gatewayv1.HTTPRequestRedirectFilter
	Rewrite           *gatewayv1.HTTPURLRewriteFilter
}

// parseFilters reads filters. A filter is never skipped: what is not kept is the
// problem that is returned, and the rule answers 500 for it (HTTPRouteFilter).
func parseFilters(where string, in []gatewayv1.HTTPRouteFilter) (filters, *problem) {
	var out filters
	for i, f := range in {
		at := fmt.Sprintf("%s.filters[%d]", where, i)
		var err error
		switch {
		case f.Type == gatewayv1.HTTPRouteFilterRequestHeaderModifier && f.RequestHeaderModifier != nil:
			err = out.Request.modify(f.RequestHeaderModifier)
		case f.Type == gatewayv1.HTTPRouteFilterResponseHeaderModifier && f.ResponseHeaderModifier != nil:
			err = out.Response.modify(f.ResponseHeaderModifier)
		case f.Type == gatewayv1.HTTPRouteFilterRequestRedirect && f.RequestRedirect != nil:
			out.Redirect = f.RequestRedirect
		case f.Type == gatewayv1.HTTPRouteFilterURLRewrite && f.URLRewrite != nil:
			out.Rewrite = f.URLRewrite
		default:
			return out, notSupported(msgRouteFilter, at, f.Type)
		}
		if err != nil {
			return out, notSupported(msgRouteValue, at, err)
		}
	}
	if out.Redirect != nil && out.Rewrite != nil {
		return out, &problem{routeIncompatibleFilters, fmt.Sprintf(msgRouteRedirectAndRewrite, where)}
	}
	return out, nil
}

// headerChanges changes headers as Envoy does: removals first, then the rest in order.
type headerChanges struct {
	Remove []string
	Add    []*corev3.HeaderValueOption
}

// modify adds the changes of one filter.
func (c *headerChanges) modify(f *gatewayv1.HTTPHeaderFilter) error {
	var next headerChanges
	add := func(hs []gatewayv1.HTTPHeader, action corev3.HeaderValueOption_HeaderAppendAction) error {
		for _, h := range hs {
			name := strings.ToLower(string(h.Name))
			if err := checkModifiable(name); err != nil {
				return err
			}
			next.Add = append(next.Add, headerValue(name, h.Value, action))
		}
		return nil
	}
	if err := add(f.Set, corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD); err != nil {
		return err
	}
	if err := add(f.Add, corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD); err != nil {
		return err
	}
	for _, name := range f.Remove {
		name = strings.ToLower(name)
		if err := checkModifiable(name); err != nil {
			return err
		}
		next.Remove = append(next.Remove, name)
	}
	*c = c.then(next)
	return nil
}

// headerValue is a header to add. Envoy formats values, so a percent sign is doubled.
func headerValue(name, value string, action corev3.HeaderValueOption_HeaderAppendAction) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{
		Header:       &corev3.HeaderValue{Key: name, Value: strings.ReplaceAll(value, "%", "%%")},
		AppendAction: action,
	}
}

// then returns the changes that do what c and after it next do: what next sets or
// removes, c need not touch.
func (c headerChanges) then(next headerChanges) headerChanges {
	overridden := map[string]bool{}
	for _, name := range next.Remove {
		overridden[name] = true
	}
	for _, h := range next.Add {
		if h.AppendAction == corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD {
			overridden[h.Header.Key] = true
		}
	}
	var out headerChanges
	for _, h := range c.Add {
		if !overridden[h.Header.Key] {
			out.Add = append(out.Add, h)
		}
	}
	out.Add = append(out.Add, next.Add...)
	out.Remove = append(slices.Clone(c.Remove), next.Remove...)
	slices.Sort(out.Remove)
	out.Remove = slices.Compact(out.Remove)
	return out
}

func (c headerChanges) empty() bool { return len(c.Add) == 0 && len(c.Remove) == 0 }

// touch says whether the header is changed.
func (c headerChanges) touch(name string) bool {
	return slices.Contains(c.Remove, name) ||
		slices.ContainsFunc(c.Add, func(h *corev3.HeaderValueOption) bool { return h.Header.Key == name })
}

// statuses are the redirects that the spec and Envoy know.
var statuses = map[int]routev3.RedirectAction_RedirectResponseCode{
	301: routev3.RedirectAction_MOVED_PERMANENTLY,
	302: routev3.RedirectAction_FOUND,
	303: routev3.RedirectAction_SEE_OTHER,
	307: routev3.RedirectAction_TEMPORARY_REDIRECT,
	308: routev3.RedirectAction_PERMANENT_REDIRECT,
}

// redirect translates a redirect of a request that came in on a listener. Without a
// port the redirect goes to the one of its scheme or, without a scheme, to the
// listener's; the well-known port of a scheme is left out (HTTPRequestRedirectFilter).
func redirect(f *gatewayv1.HTTPRequestRedirectFilter, m match, on place) (*routev3.RedirectAction, error) {
	out := &routev3.RedirectAction{HostRedirect: string(ptr.Deref(f.Hostname, ""))}
	code, ok := statuses[ptr.Deref(f.StatusCode, 302)]
	if !ok {
		return nil, fmt.Errorf("a redirect with status %d is not supported; use 301, 302, 303, 307 or 308", *f.StatusCode)
	}
	out.ResponseCode = code
	own := "http"
	if on.TLS {
		own = "https"
	}
	scheme, port := strings.ToLower(ptr.Deref(f.Scheme, "")), ptr.Deref(f.Port, 0)
	switch scheme {
	case "":
		scheme, port = own, cmp.Or(port, on.Port)
	case "http", "https":
		out.SchemeRewriteSpecifier = &routev3.RedirectAction_SchemeRedirect{SchemeRedirect: scheme}
		port = cmp.Or(port, wellKnown[scheme])
	default:
		return nil, fmt.Errorf("a redirect to scheme %q is not supported; use http or https", scheme)
	}
	// Where clients write the listener's port into Host, Envoy would keep it.
	if port != wellKnown[scheme] || out.HostRedirect == "" && on.Port != wellKnown[own] {
		out.PortRedirect = uint32(port)
	}
	if f.Path == nil {
		return out, nil
	}
	if f.Path.Type == gatewayv1.FullPathHTTPPathModifier {
		path := ptr.Deref(f.Path.ReplaceFullPath, "/")
		out.PathRewriteSpecifier = &routev3.RedirectAction_PathRedirect{PathRedirect: path}
		return out, checkPath(path)
	}
	prefix, re, err := replacePrefix(f.Path, m)
	switch {
	case prefix != "":
		out.PathRewriteSpecifier = &routev3.RedirectAction_PrefixRewrite{PrefixRewrite: prefix}
	case re != nil:
		out.PathRewriteSpecifier = &routev3.RedirectAction_RegexRewrite{RegexRewrite: re}
	}
	return out, err
}

var wellKnown = map[string]int32{"http": 80, "https": 443}

// rewrite puts a URL rewrite into a route action.
func rewrite(f *gatewayv1.HTTPURLRewriteFilter, m match, out *routev3.RouteAction) error {
	if f.Hostname != nil {
		out.HostRewriteSpecifier = &routev3.RouteAction_HostRewriteLiteral{HostRewriteLiteral: string(*f.Hostname)}
	}
	if f.Path == nil {
		return nil
	}
	if f.Path.Type == gatewayv1.FullPathHTTPPathModifier {
		path := ptr.Deref(f.Path.ReplaceFullPath, "/")
		out.RegexRewrite = substitute("^/.*$", path)
		return checkPath(path)
	}
	var err error
	out.PrefixRewrite, out.RegexRewrite, err = replacePrefix(f.Path, m)
	return err
}

// replacePrefix returns how Envoy replaces the prefix that a match has matched, which
// it does by text and not by path element: a prefix rewrite where that comes to the
// same, else a substitution; neither if nothing changes. The cases are those of the
// table at HTTPPathModifier.replacePrefixMatch.
func replacePrefix(f *gatewayv1.HTTPPathModifier, m match) (string, *matcherv3.RegexMatchAndSubstitute, error) {
	if f.Type != gatewayv1.PrefixMatchHTTPPathModifier {
		return "", nil, fmt.Errorf("a path modifier of type %q is not supported; use ReplaceFullPath or ReplacePrefixMatch", f.Type)
	}
	if m.Precedence.Path != pathPrefix {
		return "", nil, fmt.Errorf("ReplacePrefixMatch needs a match of type PathPrefix")
	}
	from, to := m.Shape.path, strings.TrimRight(ptr.Deref(f.ReplacePrefixMatch, ""), "/")
	if err := checkPath(to + "/"); err != nil {
		return "", nil, err
	}
	switch {
	case from == to:
		return "", nil, nil
	case from == "":
		return to + "/", nil, nil // the slash that Envoy takes for the prefix
	case to == "":
		return "", substitute("^"+regexp.QuoteMeta(from)+"/*", "/"), nil
	}
	return to, nil, nil
}

// substitute replaces what the expression matches by a text, in which a backslash would
// refer to a group.
func substitute(expr, text string) *matcherv3.RegexMatchAndSubstitute {
	return &matcherv3.RegexMatchAndSubstitute{
		Pattern:      &matcherv3.RegexMatcher{Regex: expr},
		Substitution: strings.ReplaceAll(text, `\`, `\\`),
	}
}

// ownsBase says whether the filters change the base model's header themselves.
func (f filters) ownsBase() bool { return f.Request.touch(contract.HeaderBaseModel) }
