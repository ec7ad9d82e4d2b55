package main

import (
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// checkListen returns a usage error unless a is where a server can listen: HOST:PORT or
// unix:PATH. That the address is free is not for it to say.
func checkListen(flag, a string) error {
	if path, unix := strings.CutPrefix(a, "unix:"); unix && path != "" {
		return nil
	}
	_, port, err := net.SplitHostPort(a)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return usagef("--%s %q: want HOST:PORT or unix:PATH", flag, a)
	}
	return nil
}

// checkBind returns a usage error unless Envoy can bind listeners to the address.
func checkBind(a string) error {
	if ip, err := netip.ParseAddr(a); err != nil || ip.Zone() != "" {
		return usagef("--bind %q: want an IP address; Envoy looks up no names for listeners", a)
	}
	return nil
}
