"""From a rule, plain NumPy code, to a Program that backends print: specialize, trace, lower."""
