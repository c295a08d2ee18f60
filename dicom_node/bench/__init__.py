"""The benchmarks behind docs/BENCHMARKS.md: how good the marks are, and how fast the node is."""
