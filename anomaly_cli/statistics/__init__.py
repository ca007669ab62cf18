"""Statistics of scores: p-values, false discovery rate, limits, prevalence, drift, metrics. Arrays in, numbers out."""
