"""The command line: training on digits, races down surfaces, generated source, benchmarks. Needs the extra `demo`."""
