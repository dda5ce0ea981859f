package rpc_test

import (
	"context"
	"fmt"
	"slices"
	"strings"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
)

// fence is the newest mastership that has reported.
type fence struct {
	epoch  int64
	holder string
}

// keeps tells whether a mastership's report is an outdated one's.
func (f fence) keeps(out fence) bool {
	return out.epoch < f.epoch || out.epoch == f.epoch && f.holder != "" && out.holder != f.holder
}

// observed is a condition as it was last reported. Holds is what was last known for certain.
type observed struct {
	status, reason string
	holds          bool
}

// believes judges a report of a mastership of a shard on an integration, which may be nil.
func (m *model) believes(shard int32, by fence, i *modelIntegration) refused {
	switch {
	case m.fences[shard].keeps(by):
		return "REPORT_FENCED"
	case i == nil:
		return "RESOURCE_NOT_FOUND"
	case i.fence.keeps(by):
		return "REPORT_FENCED"
	}
	return ""
}

// state is what the conditions amount to.
func (i *modelIntegration) state() string {
	application, consented, credential := i.conditions["APPLICATION_READY"].holds, i.conditions["CONSENTED"].holds, i.conditions["CREDENTIAL_READY"].holds
	switch {
	case i.deleting:
		return "DELETING"
	case application && consented && credential:
		return "ACTIVE"
	case i.everActive:
		return "DEGRADED"
	case application && !consented:
		return "AWAITING_CONSENT"
	default:
		return "PROVISIONING"
	}
}

// master is a mastership: of the newest epoch so far, the one before, or the next, for either shard: the number of shards was changed.
func (p *player) master() (shard int32, by fence) {
	shard = p.shard + int32(p.dice.IntN(2))
	newest := max(p.m.fences[p.shard].epoch, p.m.fences[p.shard+1].epoch, 1)
	by = fence{epoch: max(1, newest+int64(p.dice.IntN(12)/10)-int64(p.dice.IntN(12)/10)), holder: holder}
	if p.dice.IntN(10) == 0 {
		by.holder = otherHolder
	}
	return shard, by
}

// report has a master of the vault tell what it has found out, about an integration that may be gone.
func (p *player) report(ctx context.Context) {
	uid, i := nobody, p.m.integrations[p.integration()]
	if i != nil {
		uid = i.uid
	}
	shard, by := p.master()
	req := &registryv1.ReportConditionsRequest{IntegrationUid: uid, Mastership: &registryv1.Mastership{Shard: shard, Epoch: by.epoch, Holder: by.holder}}
	for _, kind := range []string{"APPLICATION_READY", "CONSENTED", "CREDENTIAL_READY", "PERMISSIONS_VERIFIED"} {
		if p.dice.IntN(3) > 0 {
			req.Conditions = append(req.Conditions, &registryv1.Condition{
				Type:   registryv1.Condition_Type(registryv1.Condition_Type_value["TYPE_"+kind]),
				Status: registryv1.Condition_Status(registryv1.Condition_Status_value["STATUS_"+p.pick("TRUE", "TRUE", "TRUE", "FALSE", "UNKNOWN")]),
				Reason: p.pick("One", "Two"), Message: p.pick("one", "two"),
			})
		}
	}
	_, err := p.w.vault.status.ReportConditions(ctx, req)
	if !p.ended(fmt.Sprintf("report %v", req), p.m.believes(shard, by, i), err) {
		return
	}
	p.m.fences[shard], i.fence = by, by
	for _, c := range req.GetConditions() {
		kind := strings.TrimPrefix(c.GetType().String(), "TYPE_")
		next := observed{status: strings.TrimPrefix(c.GetStatus().String(), "STATUS_"), reason: c.GetReason(), holds: i.conditions[kind].holds}
		if next.status != "UNKNOWN" {
			next.holds = next.status == "TRUE"
		}
		if i.conditions == nil {
			i.conditions = map[string]observed{}
		}
		i.conditions[kind] = next
	}
	p.ends[refused("reported "+i.state())]++
	i.everActive = i.everActive || i.state() == "ACTIVE"
}

// forgetIntegration is what the vault does when the application is gone for good.
func (p *player) forgetIntegration(ctx context.Context) {
	name := p.integration()
	i := p.m.integrations[name]
	if i == nil {
		return
	}
	shard, by := p.master()
	want := p.m.believes(shard, by, i)
	if want == "" && !i.deleting {
		want = "INVALID_FIELDS"
	}
	_, err := p.w.vault.status.ReportConditions(ctx, &registryv1.ReportConditionsRequest{
		IntegrationUid: i.uid, Mastership: &registryv1.Mastership{Shard: shard, Epoch: by.epoch, Holder: by.holder}, ApplicationRemoved: true,
	})
	if p.ended(fmt.Sprintf("forget %s by %d, %v", name, shard, by), want, err) {
		p.m.fences[shard] = by
		delete(p.m.integrations, name)
	}
}

// known are an integration's conditions, as a line.
func (i *modelIntegration) known() string {
	var all []string
	for kind, c := range i.conditions {
		all = append(all, kind+"="+c.status+"("+c.reason+")")
	}
	slices.Sort(all)
	return strings.Join(all, ",")
}
