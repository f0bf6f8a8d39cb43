"""Published benchmarks on the user's disk: a folder in, a table out."""
