package operator

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/mattn/go-isatty"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"phasekey.dev/pkg/grpcclient"
	"phasekey.dev/pkg/mtls"
	"phasekey.dev/services/phasekey/internal/contexts"
)

// session is one command's way to a deployment. Connections are made when they are first used.
type session struct {
	*printer
	account string
	yes     bool
	input   io.Reader
	asks    bool // whether there is somebody to ask
	at      contexts.Context
	tls     *mtls.Source
	conns   []*grpc.ClientConn
}

func (o *options) open(ctx context.Context, c *cobra.Command) (*session, error) {
	if o.output != outputTable && o.output != outputJSON {
		return nil, errors.New("--output is table or json")
	}
	path, err := o.path()
	if err != nil {
		return nil, err
	}
	file, err := contexts.Load(path)
	if err != nil {
		return nil, err
	}
	at, err := file.Get(o.context)
	if err != nil {
		return nil, err
	}
	source, err := mtls.Open(ctx, mtls.Config{CertFile: at.CertFile, KeyFile: at.KeyFile, CAFile: at.CAFile}, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	s := &session{
		printer: &printer{out: c.OutOrStdout(), notes: c.ErrOrStderr(), json: o.output == outputJSON, interval: o.interval, watching: o.watching, limit: int(o.limit)},
		account: at.Account, yes: o.yes, input: c.InOrStdin(), asks: isTerminal(c.InOrStdin()), at: at, tls: source,
	}
	if o.account != "" {
		s.account = o.account
	}
	return s, nil
}

func (s *session) close() error {
	var problems []error
	for _, conn := range s.conns {
		problems = append(problems, conn.Close())
	}
	return errors.Join(append(problems, s.tls.Close())...)
}

// The identities that services have where nobody has chosen others.
const (
	defaultRegistryID = "spiffe://phasekey.dev/registry"
	defaultBrokerID   = "spiffe://phasekey.dev/broker"
	defaultVaultID    = "spiffe://phasekey.dev/vault"
)

func (s *session) registry() (*grpc.ClientConn, error) {
	return s.dial("registry", s.at.Registry, s.at.RegistryID, defaultRegistryID)
}

func (s *session) broker() (*grpc.ClientConn, error) {
	return s.dial("broker", s.at.Broker, s.at.BrokerID, defaultBrokerID)
}

func (s *session) vault() (*grpc.ClientConn, error) {
	return s.dial("vault", s.at.Vault, s.at.VaultID, defaultVaultID)
}

func (s *session) dial(service, target, id, defaultID string) (*grpc.ClientConn, error) {
	if target == "" {
		return nil, fmt.Errorf("the context does not say where the %[1]s is: `phasekey context set NAME --%[1]s HOST:PORT`", service)
	}
	if id == "" {
		id = defaultID
	}
	conn, err := grpcclient.Dial(grpcclient.Config{Target: target, TLS: s.tls.ClientConfig(id)})
	if err != nil {
		return nil, fmt.Errorf("%s at %s: %w", service, target, err)
	}
	s.conns = append(s.conns, conn)
	return conn, nil
}

// confirm asks before what cannot be undone.
func (s *session) confirm(format string, args ...any) error {
	if s.yes {
		return nil
	}
	question := fmt.Sprintf(format, args...)
	if !s.asks {
		return fmt.Errorf("%s? Say --yes: there is nobody to ask here", question)
	}
	_, _ = fmt.Fprintf(s.notes, "%s? [y/N] ", question)
	answer, err := bufio.NewReader(s.input).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if answer = strings.ToLower(strings.TrimSpace(answer)); answer != "y" && answer != "yes" {
		return errors.New("nothing was done")
	}
	return nil
}

func isTerminal(stream any) bool {
	file, ok := stream.(*os.File)
	return ok && isatty.IsTerminal(file.Fd())
}
