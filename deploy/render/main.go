// Command render prints install.yaml.
package main

import (
	"fmt"
	"os"

	"signalbox.dev/deploy"
)

func main() {
	b, err := deploy.Install("helm/signalbox")
	if err == nil {
		_, err = os.Stdout.Write(b)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "render:", err)
		os.Exit(1)
	}
}
