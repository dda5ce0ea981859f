package entra

import (
	"context"
	"slices"

	abstractions "github.com/microsoft/kiota-abstractions-go"
	"github.com/microsoftgraph/msgraph-sdk-go/applications"
	"github.com/microsoftgraph/msgraph-sdk-go/models"

	"phasekey.dev/services/vault/internal/directory"
)

// EnsureTrust makes one of the federated credentials that the application lacks, or changes one that differs, by one request, and returns how
// many are left to be made or changed: with 0 all were found as they shall be, or are now. Idempotent, and safe to repeat after any error. Others that the
// application has are left alone.
func (d *Directory) EnsureTrust(ctx context.Context, objectID string, wanted []directory.Trust) (left int, err error) {
	const op = "make federated credential"
	if err := d.notOwn(ctx, op, objectID); err != nil {
		return 0, err
	}
	have, err := d.trusts(ctx, objectID)
	if err != nil {
		return 0, err
	}
	var lacking []directory.Trust
	for _, w := range wanted {
		if !slices.Contains(have, w) {
			lacking = append(lacking, w)
		}
	}
	if len(lacking) == 0 {
		return 0, nil
	}
	body := models.NewFederatedIdentityCredential()
	body.SetIssuer(&lacking[0].Issuer)
	body.SetSubject(&lacking[0].Subject)
	body.SetAudiences([]string{lacking[0].Audience})
	headers := abstractions.NewRequestHeaders()
	headers.Add("Prefer", "create-if-missing")
	options := &applications.ItemFederatedIdentityCredentialsWithNameRequestBuilderPatchRequestConfiguration{Headers: headers}
	if _, err := d.byObjectID(objectID).FederatedIdentityCredentialsWithName(&lacking[0].Name).Patch(ctx, body, options); err != nil {
		return 0, graphError(op, true, err)
	}
	return len(lacking) - 1, nil
}

// RemoveTrust removes one of the federated credentials of these names that the application has, and returns how many of them are left: with 0 it has none
// any more, as far as the replica that was asked knows.
func (d *Directory) RemoveTrust(ctx context.Context, objectID string, names []string) (left int, err error) {
	const op = "remove federated credential"
	if err := d.notOwn(ctx, op, objectID); err != nil {
		return 0, err
	}
	have, err := d.trusts(ctx, objectID)
	if err != nil {
		return 0, err
	}
	have = slices.DeleteFunc(have, func(t directory.Trust) bool { return !slices.Contains(names, t.Name) })
	if len(have) == 0 {
		return 0, nil
	}
	err = d.byObjectID(objectID).FederatedIdentityCredentialsWithName(&have[0].Name).Delete(ctx, nil)
	if refused := graphError(op, true, err); err != nil && refused.Class != directory.NotFound {
		return 0, refused
	}
	return len(have) - 1, nil
}

// trusts lists the application's federated credentials, which are 20 at most: one page.
func (d *Directory) trusts(ctx context.Context, objectID string) ([]directory.Trust, error) {
	found, err := d.byObjectID(objectID).FederatedIdentityCredentials().Get(ctx, nil)
	if err != nil {
		return nil, graphError("read federated credentials", false, err)
	}
	var out []directory.Trust
	for _, f := range found.GetValue() {
		out = append(out, trust(f))
	}
	return out, nil
}

func trust(f models.FederatedIdentityCredentialable) directory.Trust {
	t := directory.Trust{Name: value(f.GetName()), Issuer: value(f.GetIssuer()), Subject: value(f.GetSubject())}
	if audiences := f.GetAudiences(); len(audiences) == 1 {
		t.Audience = audiences[0]
	}
	return t
}
