package translator

// Verdicts are all that a condition of ours can say, for the test that wants a golden of
// each.
var Verdicts = verdicts

// EnvoyPath returns the Envoy to test with.
var EnvoyPath = envoyPath

// InvalidBackend is the cluster that does not exist.
const InvalidBackend = invalidBackend
