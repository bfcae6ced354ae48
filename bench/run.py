"""Measure one entry of a plan: check all contestants, time them, and return a record.

First fastopt, the ceiling and the peers in this process are timed in turns, on the same memory. Then each peer with its
own process is timed in turns with fastopt; the process ends before the next one starts. Speeds are relative to
fastopt's times in the same race.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import fastopt
from fastopt.bench import check, clock, problem
from fastopt.bench.cases import Case, Entry
from fastopt.bench.peers import APIS, DROP_INS, PASSES, PEERS, Contestant, Peer
from fastopt.bench.process import PeerError, Process


def peers_for(entry: Entry, chosen: Sequence[str]) -> dict[str, Peer]:
    """Return the contestants to compare an entry's case with; of peers, only those in `chosen`."""
    if entry.peers == "calls":
        return {"torch fused": PEERS["torch fused"], **APIS} if "torch fused" in chosen else dict(APIS)
    known = {name: PEERS[name] for name in chosen}
    if entry.peers == "drop-in":
        return {n: p for n, p in known.items() if p.light and n.startswith("torch ")} | DROP_INS
    if entry.peers == "around":
        return PASSES
    if entry.peers in ("light", "torch"):
        return {n: p for n, p in known.items() if p.light and (entry.peers == "light" or n.startswith("torch "))}
    return known if entry.peers == "all" else {}


def measure(
    entry: Entry, repeats: int, chosen: Sequence[str], on_progress: Callable[[str], object] = lambda _: None
) -> dict[str, Any]:
    """Time one entry and return its record. `on_progress` is called with the name of what is being measured."""
    case, peers = entry.case, peers_for(entry, chosen)
    record: dict[str, Any] = {
        "part": entry.part, "case": case.as_dict(), "traffic": case.traffic, "seconds": {}, "versus": {}, "share": None,
        "cannot": {}, "notes": {},
    }  # fmt: skip
    if (need := problem.memory_needed(case)) > (free := problem.memory_free()):
        record["cannot"] = {
            "fastopt": f"it needs {need / 2**30:.0f} GiB of memory, and {free / 2**30:.0f} GiB are free"
        }
        return record
    able: dict[str, Peer] = {}
    for name, peer in peers.items():
        why = peer.absent() or peer.cannot(case)
        if why:
            record["cannot"][name] = why
        else:
            able[name] = peer
    with threads(case.threads):
        on_progress("fastopt")
        check.check_ours(case)
        made = problem.optimizer(case)
        own = problem.of_optimizer(made)
        ours = {"fastopt": clock.timed(made.step)}
        with_ceiling = (
            {**ours, "ceiling": clock.timed(problem.ceiling_pass(case, own))} if case.backend == "cpu" else ours
        )
        contestants, samples = dict(with_ceiling), {}
        for name, peer in able.items():
            if not peer.own_process:
                on_progress(name)
                contestant = prepare_peer(case, peer, own, record)
                if contestant:
                    contestants[name] = clock.timed(contestant.step, contestant.setup)
                    record["notes"] |= {name: contestant.note} if contestant.note else {}
        on_progress("timing")
        samples = clock.race(contestants, repeats)
        add_samples(record, samples)
        del contestants, with_ceiling
        gc.collect()
        for name, peer in able.items():
            if peer.own_process:
                on_progress(name)
                _time_process(case, name, ours, repeats, record)
    return record


@contextmanager
def threads(count: int):
    """Set the number of fastopt's threads within a `with` block."""
    before = fastopt.get_threads()
    fastopt.set_threads(count)
    try:
        yield
    finally:
        fastopt.set_threads(before)


def prepare_peer(case: Case, peer: Peer, own: problem.Problem, record: dict[str, Any]) -> Contestant | None:
    """Check a peer in this process and prepare it for timing; if it fails, put the reason in the record."""
    try:
        peer.load(case.threads)
        if getattr(peer, "comparable", True):
            check.check_peer(case, peer)
        return peer.tune(case, peer.make(case, own))
    except Exception as error:  # a library may raise anything
        first = str(error).strip().splitlines() or [""]
        record["cannot"][peer.name] = f"failed: {type(error).__name__}: {first[0][:300]}"
        return None


def _time_process(case: Case, name: str, ours: Mapping[str, clock.Timed], repeats: int, record: dict[str, Any]) -> None:
    """Time fastopt and a peer in its own process, in turns; if the peer fails, put the reason in the record."""
    try:
        with Process(name, case.threads) as process:
            note = process.prepare(case)
            record["notes"] |= {name: note} if note else {}
            add_samples(record, clock.race({**ours, name: partial(process.seconds)}, repeats))
    except PeerError as error:
        record["cannot"][name] = f"failed: {error}"


def add_samples(record: dict[str, Any], samples: Mapping[str, list[float]]) -> None:
    """Add samples of one race to the record: seconds, and fastopt's speed relative to each contestant."""
    for name, seconds in samples.items():
        record["seconds"].setdefault(name, clock.percentiles(seconds))
        if name not in ("fastopt", "ceiling"):
            record["versus"][name] = clock.speed(samples["fastopt"], seconds)
    if "ceiling" in samples:
        record["share"] = clock.speed(samples["fastopt"], samples["ceiling"])
