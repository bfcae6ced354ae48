"""What a storage costs in quality. `python -m fastopt.bench.quality` measures it: see `--help`."""
