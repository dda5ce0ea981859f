// Package change is what watchers are told: one change of one resource, and its place in the order of all changes.
package change

import (
	"phasekey.dev/services/registry/internal/attachment"
	"phasekey.dev/services/registry/internal/integration"
	"phasekey.dev/services/registry/internal/project"
)

// Change is one change of one resource. Exactly one of the resources is set.
type Change struct {
	// Revision is its place. Revisions have no gaps, and their order is the order of commits.
	Revision int64
	// Deleted says that the resource is gone; it is then as it last was.
	Deleted bool

	Integration *integration.Integration
	Project     *project.Project
	Attachment  *attachment.Attachment
}
