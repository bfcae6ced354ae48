"""Benchmarks: the time of a step as a share of the machine's memory ceiling, and compared with other libraries.

`fastopt bench --help` says how to run them, docs/benchmark.md how they measure. `cases` lists what is timed, `peers`
has the libraries to compare with, `run` and `clock` measure, `record` reads and writes results files, `goals` checks
results, and `report`, `pictures`, `compare` and `readme` present them. The tests check the same rules (CASES in
kernels/rules/cases.py) against the same implementations in PyTorch and optax (`glossary`).
"""
