//go:build !linux

package standalone

import "syscall"

// childAttr keeps a Ctrl-C in the terminal from reaching the Envoy, which signalbox
// drains first.
func childAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
