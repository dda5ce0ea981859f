// Package runner is the runner's side of Phasekey: it shows a grant to the vault, follows the credential that the vault
// sends, and serves or hands it to a child process without ever writing it down.
//
// A Runner keeps one stream to the vault. It guarantees that what it returns is valid at that moment by the runner's own
// clock; that every error short of a final one leaves it serving what it holds for as long as that works, while it comes
// back with jitter; and that after a final one (FinalError) it returns nothing any more. A Loopback serves a Runner's
// tokens over HTTP on 127.0.0.1 in the shapes of Azure's managed identities, which the SDKs under Terraform's providers
// ask again during a run, so a child never notices that tokens change. A Runner can ask for the client secret instead,
// which Runner.ClientSecretEnvironment gives to a child that takes nothing else.
//
// # What code under the child can reach
//
// Everything that runs below the child (providers, provisioners, external data sources) can have the phase's tokens, and
// nothing else: not the grant, not the vault, not another phase's access. Who may ask is decided so:
//
//   - The App Service shape (azidentity and the other Azure SDKs: IDENTITY_ENDPOINT) needs the guard secret, in a header.
//     The secret is in the child's environment, so whoever can read that environment can ask.
//   - The virtual-machine shape (ARM_MSI_ENDPOINT) is what go-azure-sdk asks, under the azurerm and azuread providers.
//     The releases of it that exist send `Metadata: true` and no secret: some never do, one generation sends IDENTITY_HEADER
//     as x-ms-identity when MSI_ENDPOINT and MSI_SECRET are set too (they are), later ones only what the provider hands
//     them. A secret in the URL would be in Terraform's debug log. So this shape accepts the secret where it is sent, and
//     without one it asks the kernel who owns the other end of the connection: only the runner's own user (or root) is
//     answered. Where the kernel cannot be asked, which is everywhere but on Linux, the secret is needed.
//
// Both shapes are for GET from this machine alone, and the Host header must be the literal address, so that no web page
// gets there by a name that it controls.
//
// A child that is given the client secret is another matter. It has the secret in its environment, and so does everything
// that can read that. Whoever has the secret can ask Entra ID for tokens from anywhere, for any audience, with all that the
// integration's application may do; neither the vault nor this package sees it. The secret of a lease is not removed before
// the lease is closed, its grant is revoked or its grant has ended, and not necessarily then: it works until the vault has
// replaced it. Run must therefore outlive the child. An environment cannot be changed from outside, so a rotation
// does not reach the child, and need not: the lease holds the version that it was started with.
//
// # The one tricky idea
//
// A new stream is opened while the old one still lives (the vault is about to stop, the connection is going away, or the vault is overdue), and the old one is let
// go of only when the new one has delivered. For a while there are two, so messages are ordered by the lease's generation,
// not by arrival.
package runner
