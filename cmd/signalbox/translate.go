package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"signalbox.dev/source"
	"signalbox.dev/source/dir"
	"signalbox.dev/source/manifest"
	"signalbox.dev/translator"
)

func newTranslate() *cobra.Command {
	var (
		output, gateway string
		only            []string
		translated      translationFlags
	)
	cmd := &cobra.Command{
		Use:   "translate DIR|FILE|-…",
		Short: "Print what Envoy would get, and the statuses",
		Long: `Reads YAML once and prints the Envoy configuration that it comes to, by Gateway, and
the status of every object. Private keys are redacted. What cannot be read is told on
stderr and makes the exit status 1; what can be read is printed all the same.

No Envoy is asked, so every Programmed condition is still Pending.`,
		Example: `  signalbox translate testdata/guides --only routes,status
  kubectl get gateway,httproute,inferencepool -A -o yaml | signalbox translate -`,
		Args: usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if output != "yaml" && output != "json" {
				return usagef("-o %q: want yaml or json", output)
			}
			if err := translator.CheckDumpSections(only); err != nil {
				return usagef("--only: %w", err)
			}
			opt, err := translated.options()
			if err != nil {
				return err
			}
			read, err := dir.Read(args, cmd.InOrStdin())
			if err != nil {
				return err
			}
			return printTranslation(cmd.OutOrStdout(), cmd.ErrOrStderr(), read, opt, output, gateway, only)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&output, "output", "o", "yaml", "yaml or json")
	f.StringVar(&gateway, "gateway", "", "only this Gateway, namespace/name")
	f.StringSliceVar(&only, "only", nil, "only these sections: listeners, routes, clusters, endpoints, secrets, status")
	translated.add(f)
	f.StringVar(&translated.extproc, "extproc", "127.0.0.1:9004", "where Envoys find 'signalbox extproc', IP:PORT or unix:PATH")
	return cmd
}

func printTranslation(stdout, stderr io.Writer, read manifest.Result, opt translator.Options, output, gateway string, only []string) error {
	var objects []source.Object
	for _, l := range read.Objects {
		if l.Object != nil {
			objects = append(objects, l.Object)
		}
	}
	for _, i := range read.Ignored {
		fmt.Fprintf(stderr, "%s: %s %s is not read by signalbox\n", i.Where, i.Kind, i.Name)
	}
	for _, p := range read.Problems {
		fmt.Fprintf(stderr, "%s: %s %s\n", p.Where, p.Object, p.Message)
	}
	out := translator.Translate(objects, opt)
	if gateway != "" && !slices.ContainsFunc(out.Statuses, func(s translator.Status) bool {
		return s.Ref.Kind == source.KindGateway && s.Gateway != nil && s.Ref.Namespace+"/"+s.Ref.Name == gateway
	}) {
		return fmt.Errorf("no Gateway %q of ours: is its GatewayClass there, with controllerName %s?", gateway, translator.ControllerName)
	}
	dump, err := out.Dump(gateway, only...)
	if err != nil {
		return err
	}
	b, err := yaml.Marshal(dump)
	if output == "json" {
		b, err = json.MarshalIndent(dump, "", "  ")
		b = append(b, '\n')
	}
	if err != nil {
		return err
	}
	if _, err := stdout.Write(b); err != nil {
		return err
	}
	if n := len(read.Problems); n > 0 {
		return fmt.Errorf("problems found: %d", n)
	}
	return nil
}
