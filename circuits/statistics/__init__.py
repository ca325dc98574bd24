"""Statistics: laws of estimates, tests, accumulators, recorded readings, and the inverse read from them."""
