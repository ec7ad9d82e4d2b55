package e2e

import "bytes"

// longerModel renames the model of a body, as a picker with rewrite rules does.
func longerModel(body []byte) []byte {
	return bytes.Replace(body, []byte(`{"model":"`), []byte(`{"model":"served-under-another-and-longer-name-than-`), 1)
}
