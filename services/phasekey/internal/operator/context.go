package operator

import (
	"fmt"
	"path/filepath"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"phasekey.dev/services/phasekey/internal/contexts"
)

func contextCommand(o *options) *cobra.Command {
	return noun("context", "Say where deployments are, and who to be there", o.setContext(), o.useContext(), o.listContexts(), o.deleteContext())
}

// change changes the file of contexts.
func (o *options) change(do func(*contexts.File) error) error {
	path, err := o.path()
	if err != nil {
		return err
	}
	file, err := contexts.Load(path)
	if err != nil {
		return err
	}
	if err := do(&file); err != nil {
		return err
	}
	return file.Save(path)
}

func (o *options) setContext() *cobra.Command {
	var given contexts.Context
	c := &cobra.Command{
		Use:   "set NAME",
		Short: "Make a context, or change what is given of it",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return o.change(func(file *contexts.File) error {
				context := file.Contexts[args[0]]
				for flag, field := range map[string][2]*string{
					"registry": {&context.Registry, &given.Registry}, "registry-id": {&context.RegistryID, &given.RegistryID},
					"broker": {&context.Broker, &given.Broker}, "broker-id": {&context.BrokerID, &given.BrokerID},
					"vault": {&context.Vault, &given.Vault}, "vault-id": {&context.VaultID, &given.VaultID},
					"default-account": {&context.Account, &given.Account},
				} {
					if c.Flags().Changed(flag) {
						*field[0] = *field[1]
					}
				}
				for flag, field := range map[string][2]*string{
					"ca": {&context.CAFile, &given.CAFile}, "cert": {&context.CertFile, &given.CertFile}, "key": {&context.KeyFile, &given.KeyFile},
				} {
					if c.Flags().Changed(flag) {
						path, err := filepath.Abs(*field[1])
						if err != nil {
							return err
						}
						*field[0] = path
					}
				}
				return file.Set(args[0], context)
			})
		},
	}
	flags := c.Flags()
	flags.StringVar(&given.Registry, "registry", "", "the registry's address, HOST:PORT or any gRPC target")
	flags.StringVar(&given.Broker, "broker", "", "the broker's")
	flags.StringVar(&given.Vault, "vault", "", "the vault's, for services and operators")
	flags.StringVar(&given.RegistryID, "registry-id", "", "the SPIFFE ID that the registry must have; "+defaultRegistryID+" otherwise")
	flags.StringVar(&given.BrokerID, "broker-id", "", "the broker's; "+defaultBrokerID+" otherwise")
	flags.StringVar(&given.VaultID, "vault-id", "", "the vault's; "+defaultVaultID+" otherwise")
	flags.StringVar(&given.CAFile, "ca", "", "PEM file with the CA of their certificates")
	flags.StringVar(&given.CertFile, "cert", "", "PEM file with the certificate to show")
	flags.StringVar(&given.KeyFile, "key", "", "PEM file with its key")
	flags.StringVar(&given.Account, "default-account", "", "the account of what is named by its ID alone")
	return c
}

func (o *options) useContext() *cobra.Command {
	return &cobra.Command{
		Use: "use NAME", Short: "Make a context the current one", Args: cobra.ExactArgs(1), ValidArgsFunction: o.completeContexts,
		RunE: func(_ *cobra.Command, args []string) error {
			return o.change(func(file *contexts.File) error { return file.Use(args[0]) })
		},
	}
}

func (o *options) deleteContext() *cobra.Command {
	return &cobra.Command{
		Use: "delete NAME", Short: "Forget a context", Args: cobra.ExactArgs(1), ValidArgsFunction: o.completeContexts,
		RunE: func(_ *cobra.Command, args []string) error {
			return o.change(func(file *contexts.File) error { return file.Delete(args[0]) })
		},
	}
}

func (o *options) listContexts() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "Show the contexts; the current one has a star", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			path, err := o.path()
			if err != nil {
				return err
			}
			file, err := contexts.Load(path)
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 2, ' ', 0)
			_, err = fmt.Fprintln(w, "\tNAME\tREGISTRY\tBROKER\tVAULT\tACCOUNT\tCERTIFICATE")
			for _, name := range file.Names() {
				star, at := "", file.Contexts[name]
				if name == file.Current {
					star = "*"
				}
				if err == nil {
					_, err = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", star, name, orNone(at.Registry), orNone(at.Broker), orNone(at.Vault), orNone(at.Account), at.CertFile)
				}
			}
			if err != nil {
				return err
			}
			return w.Flush()
		},
	}
}
