package stack

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"

	"phasekey.dev/pkg/entrasim"
)

// World is what the simulated Entra is furnished with: the platform's home tenant, and one customer.
type World struct {
	HomeTenant       string `json:"home_tenant"`
	PlatformClientID string `json:"platform_client_id"`
	// CustomerTenant has an administrator and a subscription.
	CustomerTenant string `json:"customer_tenant"`
	Administrator  string `json:"administrator"`
	Subscription   string `json:"subscription"`
}

func secretFile(dir string) string { return filepath.Join(dir, "platform.secret") }

func worldFile(dir string) string { return filepath.Join(dir, "world.json") }

// furnished tells whether the folder has a whole world.
func furnished(dir string) bool {
	_, err := os.Stat(worldFile(dir))
	return err == nil
}

// furnish makes the world, or finds the one that an earlier stack made in the folder.
func furnish(sim *entrasim.Simulator, dir string) (World, error) {
	var w World
	path := worldFile(dir)
	text, err := os.ReadFile(path) //nolint:gosec // a file of the stack's own folder
	if err == nil {
		return w, json.Unmarshal(text, &w)
	}
	if !errors.Is(err, os.ErrNotExist) {
		return World{}, err
	}
	home, err := sim.CreateTenant(entrasim.NewTenant{DisplayName: "Platform", Domain: "platform.example.com", Verified: true})
	if err != nil {
		return World{}, err
	}
	platform, err := sim.CreatePlatform(entrasim.NewPlatform{Tenant: home.ID, DisplayName: "Platform"})
	if err != nil {
		return World{}, err
	}
	customer, err := sim.CreateTenant(entrasim.NewTenant{DisplayName: "Acme", Domain: "acme.example.com", Verified: true})
	if err != nil {
		return World{}, err
	}
	administrator, err := sim.CreatePerson(entrasim.Person{Tenant: customer.ID, UserName: "alice@acme.example.com", DisplayName: "Alice", Admin: true})
	if err != nil {
		return World{}, err
	}
	if _, err := sim.CreatePerson(entrasim.Person{Tenant: customer.ID, UserName: "bob@acme.example.com", DisplayName: "Bob"}); err != nil {
		return World{}, err
	}
	subscription, err := sim.CreateSubscription(entrasim.Subscription{Tenant: customer.ID, DisplayName: "Acme production"})
	if err != nil {
		return World{}, err
	}
	w = World{
		HomeTenant: home.ID, PlatformClientID: platform.ClientID,
		CustomerTenant: customer.ID, Administrator: administrator.UserName, Subscription: subscription.ID,
	}
	if err := replaceFile(secretFile(dir), []byte(platform.ClientSecret)); err != nil {
		return World{}, err
	}
	// Last: with this file the world is whole.
	if text, err = json.MarshalIndent(w, "", "  "); err != nil {
		return World{}, err
	}
	return w, replaceFile(path, append(text, '\n'))
}
