package feed_test

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"testing"

	registryv1 "phasekey.dev/gen/phasekey/registry/v1"
)

// The registry resolves by labels as the vault attaches by them: the registry's integrations are tested by the same file.
func TestFeed_LabelsMeanWhatTheyMeanToTheRegistry(t *testing.T) {
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
	inBubble(t, func(t *testing.T, w *world) {
		var want []string
		for n, row := range table {
			uid := fmt.Sprintf("i-%02d", n)
			w.registry.put(integration(uid, uid, func(i *registryv1.Integration) { i.AutoAttach, i.Labels = row.AutoAttach, row.Labels }))
			for _, name := range row.Names {
				want = append(want, uid+" goes by "+name)
			}
		}
		slices.Sort(want)
		w.follow(1)
		w.current("listed", 0)
		if got := w.store.labels(); !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}
