package integration_test

import (
	"encoding/json"
	"os"
	"slices"
	"testing"

	"phasekey.dev/services/registry/internal/integration"
)

// The vault copies labels and attaches by them as the registry does: its feed is tested by the same file.
func TestSpec_AutoLabels(t *testing.T) {
	text, err := os.ReadFile("../../../../proto/testdata/auto_labels.json")
	if err != nil {
		t.Fatal(err)
	}
	var table []struct {
		Name       string
		AutoAttach bool `json:"auto_attach"`
		Labels     []string
		Names      []string
	}
	if err := json.Unmarshal(text, &table); err != nil || len(table) == 0 {
		t.Fatalf("%d rows, %v", len(table), err)
	}
	for _, tt := range table {
		t.Run(tt.Name, func(t *testing.T) {
			got := integration.Spec{AutoAttach: tt.AutoAttach, Labels: tt.Labels}.Normal().AutoLabels()
			if slices.Sort(got); !slices.Equal(got, tt.Names) {
				t.Errorf("names %q, want %q", got, tt.Names)
			}
		})
	}
}
