package operator

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	vaultv1 "phasekey.dev/gen/phasekey/vault/v1"
)

var keyView = view[*vaultv1.SigningKey]{
	{head: "KEY", cell: func(k *vaultv1.SigningKey) string { return id(k.GetName()) }},
	{head: "STATE", cell: func(k *vaultv1.SigningKey) string {
		return strings.TrimSpace(word(k.GetState()) + " " + k.GetReason())
	}},
	{head: "PUBLISHED", cell: func(k *vaultv1.SigningKey) string { return age(k.GetPublishTime()) }},
	{head: "SIGNS", cell: func(k *vaultv1.SigningKey) string { return age(k.GetSignTime()) }},
	{head: "TO BE REPLACED", cell: func(k *vaultv1.SigningKey) string { return age(k.GetReplaceTime()) }},
	{head: "RETIRED", cell: func(k *vaultv1.SigningKey) string { return age(k.GetRetireTime()) }},
	{head: "REMOVED", cell: func(k *vaultv1.SigningKey) string { return age(k.GetRemoveTime()) }},
}

func signingKeys(o *options) *cobra.Command {
	return noun("signing-keys", "The keys of the vault as an issuer, with which federated integrations show who they are", o.listKeys(), o.rotateKeys())
}

func (o *options) listKeys() *cobra.Command {
	return o.long(o.watchable(o.verb("list", "Show the keys through their lives, the newest first", cobra.NoArgs, func(ctx context.Context, s *session, _ []string) error {
		client, err := s.rotations()
		if err != nil {
			return err
		}
		return show(ctx, s.printer, keyView, func(ctx context.Context, size int32, token string) (*vaultv1.ListSigningKeysResponse, error) {
			return client.ListSigningKeys(ctx, &vaultv1.ListSigningKeysRequest{PageSize: size, PageToken: token})
		}, func(r *vaultv1.ListSigningKeysResponse) *[]*vaultv1.SigningKey { return &r.SigningKeys })
	})))
}

func (o *options) rotateKeys() *cobra.Command {
	var compromised string
	c := o.careful(o.verb("rotate", "Have the key that signs replaced by the one that is published", cobra.NoArgs, func(ctx context.Context, s *session, _ []string) error {
		client, err := s.rotations()
		if err != nil {
			return err
		}
		request := &vaultv1.RotateSigningKeysRequest{Reason: reasonOf(compromised != "")}
		if compromised != "" {
			request.SigningKey = "signingKeys/" + id(compromised)
			if err := s.confirm("Drop %s now: if it signs, federated integrations work again once each has proven the next one", request.GetSigningKey()); err != nil {
				return err
			}
		}
		answer, err := client.RotateSigningKeys(ctx, request)
		switch {
		case err != nil:
			return err
		case s.json:
			return s.document(answer)
		}
		return table(s.printer, keyView, answer.GetSigningKeys())
	}))
	c.Flags().StringVar(&compromised, "compromised", "", "the key that may be in wrong hands: it is dropped at once")
	return c
}
