"""A handful of the same cases for pytest-benchmark: `pytest bench --benchmark-enable`, with its usual options.

Results rest on the suites of `python -m bench`, where contestants take turns. Here each is timed
by itself, which is handy while working on one of them: `--benchmark-save`, `--benchmark-compare`, `-k`.
"""

import pytest

from bench import large, small

MEDIUM = 1 << 20
CASES = {
    **{case.name: case for case in small.cases(1000)},
    **{f"{case.name}, {MEDIUM}": case for case in large.cases(MEDIUM) if case.name in ("sgd", "adam", "rmsprop")},
}
CONTESTANTS = [
    ("1 tensor of 1,000", "step"),
    ("1 tensor of 1,000", "step, lr scheduled"),
    ("1 tensor of 1,000", "update"),
    ("1 tensor of 1,000", "torch"),
    ("100 tensors of 10 to 1,000", "step"),
    ("100 tensors of 10 to 1,000", "torch"),
    *[(name, who) for name in list(CASES)[4:] for who in ("fastopt", "ceiling", "torch")],
]


@pytest.mark.parametrize(("case", "contestant"), CONTESTANTS)
def test_speed(benchmark, case, contestant):
    call = CASES[case].prepare()[contestant]
    if call is None:
        pytest.skip("torch is not installed")
    benchmark.group = case
    benchmark(call)
