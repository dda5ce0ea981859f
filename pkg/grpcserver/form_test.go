package grpcserver

import "testing"

func TestFormOf_IsForPeople(t *testing.T) {
	const id = `[a-z]([a-z0-9-]{0,61}[a-z0-9])?`
	const ids = ", where an {id} is 1 to 63 of a-z, 0-9 and '-', begins with a letter and does not end with '-'"
	for pattern, want := range map[string]string{
		"^accounts/" + id + "/integrations/" + id + "$": "must be of the form accounts/{id}/integrations/{id}" + ids,
		"^accounts/(-|" + id + ")$":                     "must be of the form accounts/(-|{id})" + ids,
		"^" + id + "$":                                  "must be of the form {id}" + ids,
		"^[A-Za-z0-9_-]{8,64}$":                         "must be of the form [A-Za-z0-9_-]{8,64}",
		"^batches/[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$": "must be of the form batches/{uuid}",
	} {
		if got := formOf(pattern); got != want {
			t.Errorf("%s: %s", pattern, got)
		}
	}
}
