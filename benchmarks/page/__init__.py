"""docs/benchmarks.md from the tables."""
