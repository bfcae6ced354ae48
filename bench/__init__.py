"""Benchmarks: what a step costs, as a share of what this machine's memory allows and beside other libraries.

`python -m bench --help` says how to run them. Rules, settings and peers come from tests/: what is timed here is what
the tests prove to be right. A new rule gets a row in tests/cases.py and is then timed without a line here.
"""
