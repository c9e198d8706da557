"""Statistics of results: 95 % intervals, paired comparison of models, smoothness."""
