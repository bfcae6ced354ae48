"""The effect of storages on the quality of training. `python -m fastopt.bench.quality` measures it: see `--help`."""
