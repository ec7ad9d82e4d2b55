package standalone

import "syscall"

// childAttr keeps a Ctrl-C in the terminal from reaching the Envoy, which signalbox
// drains first, and ends the Envoy should signalbox be killed.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}
