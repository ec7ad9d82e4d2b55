package translator

// Verdicts are all that a condition of ours can say, for the test that wants a golden of
// each.
var Verdicts = verdicts
