package entrasim

import (
	"net/http"
	"slices"
	"strings"
)

// registration is a resource provider registered in a subscription.
type registration struct {
	Subscription string `json:"subscription"`
	Namespace    string `json:"namespace"`
}

// usualProviders are those that every subscription has from its beginning.
func usualProviders() []string { return []string{"Microsoft.Authorization", "Microsoft.Resources"} }

// resourceProviders are the namespaces the simulator knows, in their order.
func resourceProviders() []string {
	return []string{
		"Microsoft.ApiManagement", "Microsoft.App", "Microsoft.AppConfiguration", "Microsoft.Authorization", "Microsoft.Automation", "Microsoft.Cache",
		"Microsoft.Cdn", "Microsoft.CognitiveServices", "Microsoft.Compute", "Microsoft.ContainerInstance", "Microsoft.ContainerRegistry",
		"Microsoft.ContainerService", "Microsoft.DBforMySQL", "Microsoft.DBforPostgreSQL", "Microsoft.DataFactory", "Microsoft.Databricks", "Microsoft.Devices",
		"Microsoft.DocumentDB", "Microsoft.EventGrid", "Microsoft.EventHub", "Microsoft.Insights", "Microsoft.KeyVault", "Microsoft.Logic",
		"Microsoft.MachineLearningServices", "Microsoft.ManagedIdentity", "Microsoft.Management", "Microsoft.Network", "Microsoft.OperationalInsights",
		"Microsoft.OperationsManagement", "Microsoft.PolicyInsights", "Microsoft.RecoveryServices", "Microsoft.Resources", "Microsoft.Search",
		"Microsoft.Security", "Microsoft.ServiceBus", "Microsoft.SignalRService", "Microsoft.Sql", "Microsoft.Storage", "Microsoft.Web",
	}
}

// resourceProvider is a known namespace as Azure spells it, empty when unknown.
func resourceProvider(namespace string) string {
	for _, known := range resourceProviders() {
		if strings.EqualFold(known, namespace) {
			return known
		}
	}
	return ""
}

func providerID(subscription, namespace string) string {
	return "/subscriptions/" + subscription + "/providers/" + namespace
}

// provider is a namespace as the caller's replica shows it. Its resource types
// are left out, for there are no resources.
func (sub *subscriptionRecord) provider(c *call, namespace string) map[string]any {
	state, policy := "NotRegistered", "RegistrationRequired"
	r := sub.registrations[namespace]
	switch {
	case slices.Contains(usualProviders(), namespace):
		state, policy = "Registered", "RegistrationFree"
	case r.seen(PlaneARM, c.replica, c.now) != nil:
		state = "Registered"
	case r.latest() != nil:
		state = "Registering"
	}
	return map[string]any{
		"id": providerID(sub.ID, namespace), "namespace": namespace, "registrationState": state, "registrationPolicy": policy, "resourceTypes": []any{},
	}
}

func (s *Simulator) listProviders(c *call, _ armTarget, sub *subscriptionRecord) reply {
	found := []any{}
	for _, namespace := range resourceProviders() {
		found = append(found, sub.provider(c, namespace))
	}
	return armJSON(c, http.StatusOK, map[string]any{"value": found})
}

func providerNotFound(c *call, namespace string) reply {
	return c.fail(http.StatusNotFound, "InvalidResourceNamespace", "The resource namespace '"+clip(namespace, 128)+"' is invalid.")
}

func (s *Simulator) getProvider(c *call, t armTarget, sub *subscriptionRecord) reply {
	namespace := resourceProvider(t.namespace)
	if namespace == "" {
		return providerNotFound(c, t.namespace)
	}
	return armJSON(c, http.StatusOK, sub.provider(c, namespace))
}

// registerProvider begins a registration. It is done as soon as a replica shows
// it, but the answer to the first request is never that it is.
func (s *Simulator) registerProvider(c *call, t armTarget, sub *subscriptionRecord) reply {
	namespace := resourceProvider(t.namespace)
	if namespace == "" {
		return providerNotFound(c, t.namespace)
	}
	view := sub.provider(c, namespace)
	if view["registrationState"] != "NotRegistered" {
		return armJSON(c, http.StatusOK, view)
	}
	if err := s.commit(&change{
		Time: c.now, Kind: "provider.registered", Actor: c.actor, RequestID: c.requestID,
		Registration: &registration{Subscription: sub.ID, Namespace: namespace},
		Visible:      Visibility{ARM: s.draw(s.dice.Of(c.actor), c.now, s.config.Lags.Role)},
	}); err != nil {
		return unavailable(c)
	}
	view["registrationState"] = "Registering"
	return armJSON(c, http.StatusOK, view)
}
