"""Benchmarks for pytest-benchmark: `pytest bench` times fastopt and the peers that run in this process.

Published results come from `fastopt bench`, where contestants are timed in turns. Here each is timed by itself, which
is practical while working on one of them: `-k 'adam and 64Mi'`, `--benchmark-save`, `--benchmark-compare`,
`--benchmark-json`.
"""

import pytest

from fastopt import get_threads
from fastopt.bench import check, problem
from fastopt.bench.cases import SMALL, Case
from fastopt.bench.peers import PEERS
from fastopt.bench.run import threads

CASES = [
    Case(rule=rule, storage=storage, size=size, threads=get_threads())
    for rule, storage, size in (
        *((rule, "f32", "1Mi") for rule in ("sgd", "momentum-heavy-ball", "rmsprop", "adam-decoupled", "lion")),
        *(("adam-decoupled", storage, "1Mi") for storage in ("bf16", "split", "8bit", "split_8bit")),
        *(("adam-decoupled", "f32", size) for size in ("1000", SMALL, "64Mi")),
    )
]
CONTESTANTS = [
    (case, name)
    for case in CASES
    for name in (
        "fastopt",
        "ceiling",
        *(n for n, peer in PEERS.items() if not peer.own_process and not peer.cannot(case)),
    )
]


@pytest.mark.parametrize(("case", "name"), CONTESTANTS, ids=[f"{name} {case.name}" for case, name in CONTESTANTS])
def test_speed(benchmark, case, name):
    benchmark.group = case.name
    benchmark.extra_info.update(case.as_dict(), traffic=case.traffic)
    with threads(case.threads):
        made = problem.optimizer(case)
        own = problem.of_optimizer(made)
        if name == "fastopt":
            check.check_ours(case)
            benchmark(made.step)
        elif name == "ceiling":
            benchmark(problem.ceiling_pass(case, own))
        else:
            peer = PEERS[name]
            if absent := peer.absent():
                pytest.skip(absent)
            peer.load(case.threads)
            check.check_peer(case, peer)
            contestant = peer.tune(case, peer.make(case, own))
            if contestant.setup:
                contestant.setup()
            benchmark(contestant.step)
