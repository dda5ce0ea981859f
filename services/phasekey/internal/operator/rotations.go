package operator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
)

var rotationView = view[*vaultv1.Rotation]{
	{head: "ROTATION", cell: func(r *vaultv1.Rotation) string { return id(r.GetName()) }},
	{label: "Resource", cell: (*vaultv1.Rotation).GetName},
	{head: "STATE", cell: func(r *vaultv1.Rotation) string {
		return strings.TrimSpace(word(r.GetState()) + " " + r.GetStateReason())
	}},
	{head: "REASON", cell: func(r *vaultv1.Rotation) string {
		if r.GetImmediately() {
			return word(r.GetReason()) + ", immediately"
		}
		return word(r.GetReason())
	}},
	{head: "OLD", label: "Old version", cell: func(r *vaultv1.Rotation) string { return id(r.GetOldVersion()) }},
	{head: "NEW", label: "New version", cell: func(r *vaultv1.Rotation) string { return id(r.GetNewVersion()) }},
	{head: "PROOFS", cell: func(r *vaultv1.Rotation) string { return fmt.Sprint(r.GetProofs()) }},
	{label: "By", cell: (*vaultv1.Rotation).GetCreator},
	{head: "AGE", label: "Asked for", cell: func(r *vaultv1.Rotation) string { return age(r.GetCreateTime()) }},
	{label: "Activated", cell: func(r *vaultv1.Rotation) string { return at(r.GetActivateTime()) }},
	{label: "Old one removed", cell: func(r *vaultv1.Rotation) string { return at(r.GetRemoveTime()) }},
	{label: "Exposure ends", cell: func(r *vaultv1.Rotation) string { return at(r.GetExposure().GetEndTime()) }},
	{label: "Sooner by", cell: func(r *vaultv1.Rotation) string { return strings.Join(r.GetExposure().GetRemedies(), "\n") }},
	{label: "Ended", cell: func(r *vaultv1.Rotation) string { return at(r.GetEndTime()) }},
}

var batchView = view[*vaultv1.RotationBatch]{
	{head: "BATCH", cell: func(b *vaultv1.RotationBatch) string { return id(b.GetName()) }},
	{label: "Resource", cell: (*vaultv1.RotationBatch).GetName},
	{head: "REASON", cell: func(b *vaultv1.RotationBatch) string { return word(b.GetReason()) }},
	{head: "ALL", cell: func(b *vaultv1.RotationBatch) string { return fmt.Sprint(b.GetTotalCount()) }},
	{head: "WAITING", cell: func(b *vaultv1.RotationBatch) string { return fmt.Sprint(b.GetWaitingCount()) }},
	{head: "RUNNING", cell: func(b *vaultv1.RotationBatch) string { return fmt.Sprint(b.GetRunningCount()) }},
	{label: "Awaiting consent", cell: func(b *vaultv1.RotationBatch) string { return fmt.Sprint(b.GetAwaitingConsentCount()) }},
	{head: "COMPLETED", cell: func(b *vaultv1.RotationBatch) string { return fmt.Sprint(b.GetCompletedCount()) }},
	{head: "ABANDONED", cell: func(b *vaultv1.RotationBatch) string { return fmt.Sprint(b.GetAbandonedCount()) }},
	{label: "By", cell: (*vaultv1.RotationBatch).GetCreator},
	{head: "AGE", label: "Asked for", cell: func(b *vaultv1.RotationBatch) string { return age(b.GetCreateTime()) }},
	{label: "Ended", cell: func(b *vaultv1.RotationBatch) string { return at(b.GetEndTime()) }},
}

var pauseView = view[*vaultv1.RotationPause]{
	{head: "PAUSED", cell: (*vaultv1.RotationPause).GetScope},
	{head: "BECAUSE", cell: (*vaultv1.RotationPause).GetReason},
	{head: "BY", cell: (*vaultv1.RotationPause).GetCreator},
	{head: "SINCE", cell: func(p *vaultv1.RotationPause) string { return age(p.GetCreateTime()) }},
	{head: "ENDS", cell: func(p *vaultv1.RotationPause) string { return age(p.GetExpireTime()) }},
}

var versionView = view[*vaultv1.CredentialVersion]{
	{head: "VERSION", cell: func(v *vaultv1.CredentialVersion) string { return id(v.GetName()) }},
	{head: "STATE", cell: func(v *vaultv1.CredentialVersion) string {
		return strings.TrimSpace(word(v.GetState()) + " " + v.GetReason())
	}},
	{head: "PROOFS", cell: func(v *vaultv1.CredentialVersion) string { return fmt.Sprint(v.GetProofs()) }},
	{head: "HOLDERS", cell: func(v *vaultv1.CredentialVersion) string { return fmt.Sprint(v.GetHolders()) }},
	{head: "ADDED", cell: func(v *vaultv1.CredentialVersion) string { return age(v.GetAddTime()) }},
	{head: "ACTIVATED", cell: func(v *vaultv1.CredentialVersion) string { return age(v.GetActivateTime()) }},
	{head: "REMOVED", cell: func(v *vaultv1.CredentialVersion) string { return age(v.GetRemoveTime()) }},
	{head: "ENDS", cell: func(v *vaultv1.CredentialVersion) string { return age(v.GetExpireTime()) }},
	{head: "KEY ID", cell: (*vaultv1.CredentialVersion).GetKeyId},
}

func rotations(o *options) *cobra.Command {
	return noun("rotations", "Replacing integrations' credentials",
		o.startRotation(), o.getRotation(), o.listRotations(), o.rotateAll(), o.getBatch(), o.listBatches(),
		o.pauseRotation(), o.resumeRotation(), o.listPauses(), o.listVersions())
}

func (s *session) rotations() (vaultv1.RotationServiceClient, error) {
	conn, err := s.vault()
	return vaultv1.NewRotationServiceClient(conn), err
}

// rotationsOf is the client, with an integration's name.
func (s *session) rotationsOf(given string) (vaultv1.RotationServiceClient, string, error) {
	name, err := s.in("integrations", given)
	if err != nil {
		return nil, "", err
	}
	client, err := s.rotations()
	return client, name, err
}

func reasonOf(compromised bool) vaultv1.Rotation_Reason {
	if compromised {
		return vaultv1.Rotation_REASON_COMPROMISED
	}
	return vaultv1.Rotation_REASON_SCHEDULED
}

func (o *options) startRotation() *cobra.Command {
	var (
		compromised, immediately, wait bool
		requestID                      string
	)
	c := o.careful(o.verb("start INTEGRATION", "Replace an integration's credential now, and wait until it is proven", cobra.ExactArgs(1), func(ctx context.Context, s *session, args []string) error {
		client, name, err := s.rotationsOf(args[0])
		if err != nil {
			return err
		}
		switch {
		case immediately && !compromised:
			return errors.New("--immediately is for what is --compromised")
		case immediately:
			err = s.confirm("Remove %s's secrets now, before there is a new one: runs fail until it is proven", name)
		case compromised:
			err = s.confirm("Take all secrets of %s for compromised: those that runners hold stop working as soon as there is a new one", name)
		}
		if err != nil {
			return err
		}
		answer, err := client.RotateIntegration(ctx, &vaultv1.RotateIntegrationRequest{
			Name: name, Reason: reasonOf(compromised), Immediately: immediately, RequestId: requestID,
		})
		if err != nil {
			return err
		}
		rotation := answer.GetRotation()
		if wait {
			if rotation, err = s.followRotation(ctx, client, rotation); err != nil {
				return err
			}
		}
		return card(s.printer, rotationView, rotation)
	}))
	flags := c.Flags()
	flags.BoolVar(&compromised, "compromised", false, "the secret may be in wrong hands: remove all there are as soon as there is a new one, whoever holds them")
	flags.BoolVar(&immediately, "immediately", false, "with --compromised: remove them first, and accept that nothing works for a while")
	flags.BoolVar(&wait, "wait", true, "wait until the new one is active; of what is compromised, until the old ones are removed")
	requestIDFlag(c, &requestID)
	return c
}

// followRotation says how far a rotation is until it has done what it was for.
func (s *session) followRotation(ctx context.Context, client vaultv1.RotationServiceClient, r *vaultv1.Rotation) (*vaultv1.Rotation, error) {
	r, err := poll(ctx, s.printer, r, time.Second, stage, func(r *vaultv1.Rotation) bool {
		return r.GetState() == vaultv1.Rotation_STATE_ABANDONED || r.GetState() == vaultv1.Rotation_STATE_COMPLETED ||
			r.GetState() == vaultv1.Rotation_STATE_ACTIVATED && r.GetReason() != vaultv1.Rotation_REASON_COMPROMISED
	}, func(ctx context.Context) (*vaultv1.Rotation, error) {
		return client.GetRotation(ctx, &vaultv1.GetRotationRequest{Name: r.GetName()})
	})
	if err == nil && r.GetState() == vaultv1.Rotation_STATE_ABANDONED {
		err = fmt.Errorf("the rotation was abandoned (%s): `phasekey integrations get` says what is wrong", orNone(r.GetStateReason()))
	}
	return r, err
}

// stage says in words where a rotation is.
func stage(r *vaultv1.Rotation) string {
	if reason := r.GetStateReason(); reason != "" {
		return word(r.GetState()) + " (" + reason + "): `phasekey integrations get` says what is in the way"
	}
	switch r.GetState() {
	case vaultv1.Rotation_STATE_PENDING:
		return "waiting for the shard's master"
	case vaultv1.Rotation_STATE_PROPAGATING:
		return fmt.Sprintf("version %s replicates in Entra ID; %d proofs", orNone(id(r.GetNewVersion())), r.GetProofs())
	case vaultv1.Rotation_STATE_ACTIVATED:
		return fmt.Sprintf("version %s is active; the old one goes", id(r.GetNewVersion()))
	case vaultv1.Rotation_STATE_COMPLETED:
		return "the old one is removed"
	default:
		return word(r.GetState())
	}
}

func (o *options) getRotation() *cobra.Command {
	return o.watchable(o.verb("get ROTATION", "Show a rotation, and when exposure ends", cobra.ExactArgs(1), func(ctx context.Context, s *session, args []string) error {
		client, err := s.rotations()
		if err != nil {
			return err
		}
		return showOne(ctx, s.printer, rotationView, func(ctx context.Context) (*vaultv1.Rotation, error) {
			return client.GetRotation(ctx, &vaultv1.GetRotationRequest{Name: args[0]})
		})
	}))
}

func (o *options) listRotations() *cobra.Command {
	return o.long(o.watchable(o.verb("list INTEGRATION", "Show an integration's rotations, those by schedule and those that were asked for", cobra.ExactArgs(1), func(ctx context.Context, s *session, args []string) error {
		client, name, err := s.rotationsOf(args[0])
		if err != nil {
			return err
		}
		return show(ctx, s.printer, rotationView, func(ctx context.Context, size int32, token string) (*vaultv1.ListRotationsResponse, error) {
			return client.ListRotations(ctx, &vaultv1.ListRotationsRequest{Parent: name, PageSize: size, PageToken: token})
		}, func(r *vaultv1.ListRotationsResponse) *[]*vaultv1.Rotation { return &r.Rotations })
	})))
}

func (o *options) listVersions() *cobra.Command {
	return o.long(o.watchable(o.verb("versions INTEGRATION", "Show an integration's credentials through their lives, the newest first", cobra.ExactArgs(1), func(ctx context.Context, s *session, args []string) error {
		client, name, err := s.rotationsOf(args[0])
		if err != nil {
			return err
		}
		return show(ctx, s.printer, versionView, func(ctx context.Context, size int32, token string) (*vaultv1.ListCredentialVersionsResponse, error) {
			return client.ListCredentialVersions(ctx, &vaultv1.ListCredentialVersionsRequest{Parent: name, PageSize: size, PageToken: token})
		}, func(r *vaultv1.ListCredentialVersionsResponse) *[]*vaultv1.CredentialVersion {
			return &r.CredentialVersions
		})
	})))
}

// everything is the parent of what is of all accounts.
const everything = "accounts/-"

// scope is the account that is meant, or all of them.
func (s *session) scope(allAccounts bool) (string, error) {
	if allAccounts {
		return everything, nil
	}
	return s.parent()
}

func (o *options) rotateAll() *cobra.Command {
	var (
		compromised, allAccounts, wait bool
		tenant, cloud, requestID       string
	)
	c := o.careful(o.verb("all", "Replace the credentials of all integrations of an account, or of all accounts, and say how far it is", cobra.NoArgs, func(ctx context.Context, s *session, _ []string) error {
		client, err := s.rotations()
		if err != nil {
			return err
		}
		parent, err := s.scope(allAccounts)
		if err != nil {
			return err
		}
		what := "Replace the credentials of all integrations of " + parent
		if compromised {
			what = "Take all secrets of " + parent + " for compromised, and remove them as soon as there are new ones"
		}
		if err := s.confirm("%s", what); err != nil {
			return err
		}
		answer, err := client.RotateAllIntegrations(ctx, &vaultv1.RotateAllIntegrationsRequest{
			Parent: parent, Reason: reasonOf(compromised), TenantId: tenant, Cloud: cloud, RequestId: requestID,
		})
		if err != nil {
			return err
		}
		batch := answer.GetRotationBatch()
		if wait {
			s.note("%s; interrupting this ends nothing", batch.GetName())
			if batch, err = s.followBatch(ctx, client, batch); err != nil {
				return err
			}
		}
		return card(s.printer, batchView, batch)
	}))
	flags := c.Flags()
	flags.BoolVar(&allAccounts, "all-accounts", false, "of every account")
	flags.BoolVar(&compromised, "compromised", false, "their secrets may be in wrong hands")
	flags.StringVar(&tenant, "tenant", "", "only integrations of this tenant")
	flags.StringVar(&cloud, "cloud", "", "only integrations of this cloud")
	flags.BoolVar(&wait, "wait", true, "wait for the end")
	requestIDFlag(c, &requestID)
	return c
}

// followBatch says how far a batch is until nothing of it is left.
func (s *session) followBatch(ctx context.Context, client vaultv1.RotationServiceClient, b *vaultv1.RotationBatch) (*vaultv1.RotationBatch, error) {
	return poll(ctx, s.printer, b, 2*time.Second, func(b *vaultv1.RotationBatch) string {
		return fmt.Sprintf("%d of %d completed, %d running (%d await consent), %d waiting, %d abandoned",
			b.GetCompletedCount(), b.GetTotalCount(), b.GetRunningCount(), b.GetAwaitingConsentCount(), b.GetWaitingCount(), b.GetAbandonedCount())
	}, func(b *vaultv1.RotationBatch) bool { return b.GetEndTime() != nil }, func(ctx context.Context) (*vaultv1.RotationBatch, error) {
		return client.GetRotationBatch(ctx, &vaultv1.GetRotationBatchRequest{Name: b.GetName()})
	})
}

func (o *options) getBatch() *cobra.Command {
	return o.watchable(o.verb("batch BATCH", "Show how far the rotation of many integrations is", cobra.ExactArgs(1), func(ctx context.Context, s *session, args []string) error {
		client, err := s.rotations()
		if err != nil {
			return err
		}
		name, err := s.in("rotationBatches", args[0])
		if err != nil {
			return err
		}
		return showOne(ctx, s.printer, batchView, func(ctx context.Context) (*vaultv1.RotationBatch, error) {
			return client.GetRotationBatch(ctx, &vaultv1.GetRotationBatchRequest{Name: name})
		})
	}))
}

func (o *options) listBatches() *cobra.Command {
	var allAccounts bool
	c := o.long(o.watchable(o.verb("batches", "Show the rotations of many integrations that were asked for", cobra.NoArgs, func(ctx context.Context, s *session, _ []string) error {
		client, err := s.rotations()
		if err != nil {
			return err
		}
		parent, err := s.scope(allAccounts)
		if err != nil {
			return err
		}
		return show(ctx, s.printer, batchView, func(ctx context.Context, size int32, token string) (*vaultv1.ListRotationBatchesResponse, error) {
			return client.ListRotationBatches(ctx, &vaultv1.ListRotationBatchesRequest{Parent: parent, PageSize: size, PageToken: token})
		}, func(r *vaultv1.ListRotationBatchesResponse) *[]*vaultv1.RotationBatch { return &r.RotationBatches })
	})))
	c.Flags().BoolVar(&allAccounts, "all-accounts", false, "those of all accounts at once")
	return c
}

// pauseScope is what a pause is of: an integration, an account, or everything.
func (s *session) pauseScope(args []string, allAccounts bool) (string, error) {
	if len(args) == 0 {
		return s.scope(allAccounts)
	}
	if allAccounts {
		return "", errors.New("one integration, or --all-accounts?")
	}
	return s.in("integrations", args[0])
}

func (o *options) pauseRotation() *cobra.Command {
	var (
		reason      string
		life        time.Duration
		allAccounts bool
	)
	c := o.verb("pause [INTEGRATION]", "Rotate nothing by schedule for a while, of an integration, the account, or all", cobra.MaximumNArgs(1), func(ctx context.Context, s *session, args []string) error {
		client, err := s.rotations()
		if err != nil {
			return err
		}
		scope, err := s.pauseScope(args, allAccounts)
		if err != nil {
			return err
		}
		if reason == "" {
			return errors.New("say --reason: whoever finds it paused wants to know")
		}
		answer, err := client.PauseRotation(ctx, &vaultv1.PauseRotationRequest{Scope: scope, Reason: reason, Ttl: durationpb.New(life)})
		if err != nil {
			return err
		}
		return card(s.printer, pauseView, answer.GetRotationPause())
	})
	c.Flags().StringVar(&reason, "reason", "", "why")
	lifeFlag(c, &life, "for", time.Hour, "for how long, at most seven days; it ends by itself")
	c.Flags().BoolVar(&allAccounts, "all-accounts", false, "pause everything")
	return c
}

func (o *options) resumeRotation() *cobra.Command {
	var allAccounts bool
	c := o.verb("resume [INTEGRATION]", "End a pause", cobra.MaximumNArgs(1), func(ctx context.Context, s *session, args []string) error {
		client, err := s.rotations()
		if err != nil {
			return err
		}
		scope, err := s.pauseScope(args, allAccounts)
		if err != nil {
			return err
		}
		return s.resume(ctx, client, scope)
	})
	c.Flags().BoolVar(&allAccounts, "all-accounts", false, "end the pause of everything")
	return c
}

// resume ends a pause, and refuses where there is none: for the service that is a repeat, for people more often a slip.
func (s *session) resume(ctx context.Context, client vaultv1.RotationServiceClient, scope string) error {
	parent, _ := split(scope)
	if parent == "" {
		parent = scope
	}
	paused, err := s.pauses(ctx, client, parent)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(paused.GetRotationPauses(), func(p *vaultv1.RotationPause) bool { return p.GetScope() == scope }) {
		return fmt.Errorf("there is no pause of %s: `phasekey rotations pauses` shows what is paused", scope)
	}
	if _, err := client.ResumeRotation(ctx, &vaultv1.ResumeRotationRequest{Scope: scope}); err != nil {
		return err
	}
	s.note("the pause of %s has ended", scope)
	return nil
}

func (s *session) pauses(ctx context.Context, client vaultv1.RotationServiceClient, parent string) (*vaultv1.ListRotationPausesResponse, error) {
	return all(ctx, s.printer, func(ctx context.Context, size int32, token string) (*vaultv1.ListRotationPausesResponse, error) {
		return client.ListRotationPauses(ctx, &vaultv1.ListRotationPausesRequest{Parent: parent, PageSize: size, PageToken: token})
	}, func(r *vaultv1.ListRotationPausesResponse) *[]*vaultv1.RotationPause { return &r.RotationPauses })
}

func (o *options) listPauses() *cobra.Command {
	var allAccounts bool
	c := o.long(o.verb("pauses", "Show what is paused", cobra.NoArgs, func(ctx context.Context, s *session, _ []string) error {
		client, err := s.rotations()
		if err != nil {
			return err
		}
		parent, err := s.scope(allAccounts)
		if err != nil {
			return err
		}
		answer, err := s.pauses(ctx, client, parent)
		switch {
		case err != nil:
			return err
		case s.json:
			return s.document(answer)
		}
		return table(s.printer, pauseView, answer.GetRotationPauses())
	}))
	c.Flags().BoolVar(&allAccounts, "all-accounts", false, "of all accounts")
	return c
}
