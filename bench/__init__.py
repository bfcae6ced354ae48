"""Benchmarks: what a step costs, as a share of what this machine's memory allows and beside other libraries.

`fastopt bench --help` says how to run them, docs/benchmark.md how it is measured. `cases` says what is timed, `peers`
beside whom, `run` does it with one `clock`, `record` keeps it; `report`, `pictures`, `compare` and `readme` show it.
What is timed here is what the tests prove to be right: they take their rules from `forms` and `glossary` as well.
"""
