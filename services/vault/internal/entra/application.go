package entra

import (
	"context"
	"errors"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	abstractions "github.com/microsoft/kiota-abstractions-go"
	"github.com/microsoftgraph/msgraph-sdk-go/applications"
	"github.com/microsoftgraph/msgraph-sdk-go/models"

	"phasekey.dev/pkg/secret"
	"phasekey.dev/services/vault/internal/directory"
)

// The one permission that is asked for: sign in and read the signed-in user's profile, Graph's delegated User.Read. Consent
// to it creates the service principal; what that may do is for the customer's role assignments to say.
var (
	graphResource = uuid.MustParse("00000003-0000-0000-c000-000000000000")
	userRead      = uuid.MustParse("e1fe6dd8-ba31-4d61-89e7-88639da4683d")
)

// audience lets other organisations' tenants consent, and keeps personal accounts out, for which Graph's write limit is far
// lower.
const audience = "AzureADMultipleOrgs"

const selected = "id,appId,displayName,signInAudience,web,requiredResourceAccess,servicePrincipalLockConfiguration,passwordCredentials"

// EnsureApplication makes the application of the spec's unique name, or changes what differs from the spec, and returns it as
// the directory has it. Idempotent, and safe to repeat after any error. Class NotFound means that it was made, and that
// the replica asked next does not know it yet.
func (d *Directory) EnsureApplication(ctx context.Context, spec directory.Spec) (directory.Application, error) {
	found, err := d.RepairApplication(ctx, spec)
	if directory.ClassOf(err) != directory.NotFound {
		return found, err
	}
	headers := abstractions.NewRequestHeaders()
	headers.Add("Prefer", "create-if-missing")
	made, err := d.byUniqueName(spec.UniqueName).Patch(ctx, desired(spec), &applications.ApplicationItemRequestBuilderPatchRequestConfiguration{Headers: headers})
	if err != nil {
		return directory.Application{}, graphError("create application", true, err)
	}
	// 204, without a body, when a replica that knows more found it already there.
	if made != nil && made.GetId() != nil {
		return application(made), nil
	}
	return d.RepairApplication(ctx, spec)
}

// RepairApplication changes what differs from the spec of the application of its unique name, and returns that as it was found. Idempotent, and safe
// to repeat after any error. Class NotFound may also mean that the replica asked does not know it yet; nothing is made then.
func (d *Directory) RepairApplication(ctx context.Context, spec directory.Spec) (directory.Application, error) {
	found, err := d.read(ctx, spec.UniqueName, "")
	if err != nil {
		return directory.Application{}, err
	}
	if !matches(found, spec) {
		if _, err := d.byObjectID(value(found.GetId())).Patch(ctx, desired(spec), nil); err != nil {
			return directory.Application{}, graphError("update application", true, err)
		}
	}
	return application(found), nil
}

// FindApplication reads an application by its unique name. Class NotFound may also mean that the replica asked does not know
// it yet.
func (d *Directory) FindApplication(ctx context.Context, uniqueName string) (directory.Application, error) {
	found, err := d.read(ctx, uniqueName, "&$expand=federatedIdentityCredentials")
	if err != nil {
		return directory.Application{}, err
	}
	out := application(found)
	for _, f := range found.GetFederatedIdentityCredentials() {
		out.Trusts = append(out.Trusts, trust(f))
	}
	return out, nil
}

// AddPassword makes a client secret that ends at the given time, and returns its text, which cannot be had again. After class
// OutcomeUnknown there may be one of that display name, whose text is lost.
func (d *Directory) AddPassword(ctx context.Context, objectID, displayName string, end time.Time) (directory.Password, secret.Text, error) {
	const op = "add password"
	if err := d.notOwn(ctx, op, objectID); err != nil {
		return directory.Password{}, secret.Text{}, err
	}
	wanted := models.NewPasswordCredential()
	wanted.SetDisplayName(&displayName)
	wanted.SetEndDateTime(&end)
	body := applications.NewItemAddPasswordPostRequestBody()
	body.SetPasswordCredential(wanted)
	made, err := d.byObjectID(objectID).AddPassword().Post(ctx, body, nil)
	if err != nil {
		return directory.Password{}, secret.Text{}, graphError(op, true, err)
	}
	if made == nil || made.GetKeyId() == nil || value(made.GetSecretText()) == "" {
		return directory.Password{}, secret.Text{}, &directory.Error{Op: op, Class: directory.OutcomeUnknown, Err: errors.New("the answer names no key or no text")}
	}
	return password(made), secret.New(value(made.GetSecretText())), nil
}

// RemovePassword removes a client secret. One that is gone already is no error. Tokens made with it live on to their end.
func (d *Directory) RemovePassword(ctx context.Context, objectID, keyID string) error {
	const op = "remove password"
	id, err := uuid.Parse(keyID)
	if err != nil {
		return &directory.Error{Op: op, Class: directory.Malformed, Err: err}
	}
	if err := d.notOwn(ctx, op, objectID); err != nil {
		return err
	}
	body := applications.NewItemRemovePasswordPostRequestBody()
	body.SetKeyId(&id)
	if err := d.byObjectID(objectID).RemovePassword().Post(ctx, body, nil); err != nil {
		refused := graphError(op, true, err)
		if refused.Class == directory.Malformed && strings.Contains(refused.Err.Error(), "No password credential found with keyId") {
			return nil
		}
		return refused
	}
	return nil
}

// DeleteApplication puts the application in the directory's bin, from which it could be restored for 30 days. Class NotFound may
// mean that it is gone already, or that the replica asked does not know it yet.
func (d *Directory) DeleteApplication(ctx context.Context, objectID string) error {
	if err := d.notOwn(ctx, "delete application", objectID); err != nil {
		return err
	}
	if err := d.byObjectID(objectID).Delete(ctx, nil); err != nil {
		return graphError("delete application", true, err)
	}
	return nil
}

// PurgeApplication removes the application from the bin for good. Class NotFound may mean that it was removed already, or that the
// replica asked does not know that it is in the bin yet.
func (d *Directory) PurgeApplication(ctx context.Context, objectID string) error {
	if err := d.notOwn(ctx, "purge application", objectID); err != nil {
		return err
	}
	bin := d.item().WithUrl(d.graph + "/directory/deletedItems/" + url.PathEscape(objectID))
	if err := bin.Delete(ctx, nil); err != nil {
		return graphError("purge application", true, err)
	}
	return nil
}

func (d *Directory) read(ctx context.Context, uniqueName, more string) (models.Applicationable, error) {
	found, err := d.item().WithUrl(d.uniqueNameURL(uniqueName)+"?$select="+selected+more).Get(ctx, nil)
	if err != nil {
		return nil, graphError("read application", false, err)
	}
	if found == nil || found.GetId() == nil || found.GetAppId() == nil {
		return nil, &directory.Error{Op: "read application", Class: directory.Transient, Err: errors.New("the answer names no application")}
	}
	if err := d.notOwnClient("read application", value(found.GetAppId())); err != nil {
		return nil, err
	}
	return found, nil
}

func (d *Directory) item() *applications.ApplicationItemRequestBuilder {
	return applications.NewApplicationItemRequestBuilder(d.graph+"/applications", d.adapter)
}

func (d *Directory) byObjectID(id string) *applications.ApplicationItemRequestBuilder {
	return applications.NewApplicationsRequestBuilderInternal(map[string]string{"baseurl": d.graph}, d.adapter).ByApplicationId(id)
}

// byUniqueName goes by the URL: the builder for this alternate key is in yet another package of the SDK.
func (d *Directory) byUniqueName(name string) *applications.ApplicationItemRequestBuilder {
	return d.item().WithUrl(d.uniqueNameURL(name))
}

func (d *Directory) uniqueNameURL(name string) string {
	return d.graph + "/applications(uniqueName='" + url.PathEscape(strings.ReplaceAll(name, "'", "''")) + "')"
}

func desired(spec directory.Spec) models.Applicationable {
	app := models.NewApplication()
	app.SetDisplayName(&spec.DisplayName)
	orgs := audience
	app.SetSignInAudience(&orgs)
	web := models.NewWebApplication()
	web.SetRedirectUris([]string{spec.RedirectURI})
	app.SetWeb(web)
	app.SetRequiredResourceAccess([]models.RequiredResourceAccessable{userReadAccess()})
	lock := models.NewServicePrincipalLockConfiguration()
	yes := true
	lock.SetIsEnabled(&yes)
	lock.SetAllProperties(&yes)
	app.SetServicePrincipalLockConfiguration(lock)
	return app
}

func userReadAccess() models.RequiredResourceAccessable {
	scope := "Scope"
	permission := models.NewResourceAccess()
	permission.SetId(&userRead)
	permission.SetTypeEscaped(&scope)
	access := models.NewRequiredResourceAccess()
	resource := graphResource.String()
	access.SetResourceAppId(&resource)
	access.SetResourceAccess([]models.ResourceAccessable{permission})
	return access
}

func matches(app models.Applicationable, spec directory.Spec) bool {
	lock := app.GetServicePrincipalLockConfiguration()
	return value(app.GetDisplayName()) == spec.DisplayName &&
		value(app.GetSignInAudience()) == audience &&
		app.GetWeb() != nil && slices.Equal(app.GetWeb().GetRedirectUris(), []string{spec.RedirectURI}) &&
		onlyUserRead(app.GetRequiredResourceAccess()) &&
		lock != nil && isTrue(lock.GetIsEnabled()) && isTrue(lock.GetAllProperties())
}

func onlyUserRead(access []models.RequiredResourceAccessable) bool {
	if len(access) != 1 || value(access[0].GetResourceAppId()) != graphResource.String() {
		return false
	}
	permissions := access[0].GetResourceAccess()
	return len(permissions) == 1 && permissions[0].GetId() != nil && *permissions[0].GetId() == userRead && value(permissions[0].GetTypeEscaped()) == "Scope"
}

func application(app models.Applicationable) directory.Application {
	out := directory.Application{
		ObjectID:    value(app.GetId()),
		ClientID:    value(app.GetAppId()),
		DisplayName: value(app.GetDisplayName()),
	}
	for _, p := range app.GetPasswordCredentials() {
		out.Passwords = append(out.Passwords, password(p))
	}
	return out
}

func password(p models.PasswordCredentialable) directory.Password {
	out := directory.Password{DisplayName: value(p.GetDisplayName())}
	if id := p.GetKeyId(); id != nil {
		out.KeyID = id.String()
	}
	if t := p.GetStartDateTime(); t != nil {
		out.StartTime = *t
	}
	if t := p.GetEndDateTime(); t != nil {
		out.EndTime = *t
	}
	return out
}

func value(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

func isTrue(b *bool) bool { return b != nil && *b }
