package entrasim_test

import (
	"net/http"
	"testing"

	"phasekey.dev/pkg/entrasim"
)

// BenchmarkToken is a token request, in process.
func BenchmarkToken(b *testing.B) {
	key, err := sharedKey()
	if err != nil {
		b.Fatal(err)
	}
	sim, err := entrasim.New(entrasim.Config{SigningKey: key})
	if err != nil {
		b.Fatal(err)
	}
	if _, err = sim.CreateTenant(entrasim.NewTenant{ID: homeID}); err != nil {
		b.Fatal(err)
	}
	p, err := sim.CreatePlatform(entrasim.NewPlatform{Tenant: homeID})
	if err != nil {
		b.Fatal(err)
	}
	form := credentials(p.ClientID, p.ClientSecret, armScope)
	client := &http.Client{Transport: sim.Transport()}
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			resp, err := client.PostForm("https://login.microsoftonline.com/"+homeID+"/oauth2/v2.0/token", form)
			if err != nil || resp.StatusCode != http.StatusOK {
				b.Errorf("%v %v", resp, err)
				return
			}
			_ = resp.Body.Close()
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "tokens/s")
}
