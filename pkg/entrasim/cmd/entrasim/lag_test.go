package main

import (
	"io"
	"strings"
	"testing"
	"time"

	"phasekey.dev/pkg/entrasim"
)

func TestParse_Lags(t *testing.T) {
	all := entrasim.Lag(time.Second, 3*time.Second)
	some := all
	some.Secret = entrasim.Range{Min: 4 * time.Second, Max: 18 * time.Second}
	some.Removal = entrasim.Range{Min: time.Minute, Max: time.Minute}
	for _, tt := range []struct {
		name string
		args []string
		want entrasim.Lags
	}{
		{"none", nil, entrasim.Lags{}},
		{"one for all", []string{"-lag", "1s-3s"}, all},
		{"others for some", []string{"-lag", "1s-3s,secret=4s-18s,removal=1m"}, some},
		{"others for some, each by itself", []string{"-lag", "1s-3s", "-lag", "secret=4s-18s", "-lag", "removal=1m"}, some},
		{"only some", []string{"-lag", "secret=4s-18s"}, entrasim.Lags{Secret: some.Secret}},
		{"the last one counts", []string{"-lag", "secret=4s-18s", "-lag", "1s-3s"}, all},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o, err := parse(tt.args, io.Discard)
			if err != nil || o.lags != tt.want {
				t.Errorf("%+v (%v), want %+v", o.lags, err, tt.want)
			}
		})
	}
	for _, name := range lagNames() {
		var help strings.Builder
		_, f := define(&help)
		if f.Usage(); !strings.Contains(help.String(), name) {
			t.Errorf("-h does not name the lag %s", name)
		}
	}
	for _, text := range []string{"", "secret", "nonsense=1s", "=1s", "1s-3s,", "secret=soon"} {
		if o, err := parse([]string{"-lag", text}, io.Discard); err == nil {
			t.Errorf("%q was accepted: %+v", text, o.lags)
		}
	}
}
