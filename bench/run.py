"""The engine: one entry of a plan becomes one record. Check, then time, peers one after the other beside fastopt.

A heat is a race of a few contestants: first fastopt, the ceiling and the peers in this process, on the same memory;
then fastopt and one peer with a process of its own, which takes turns by a pipe and is gone before the next. Ratios
are those within a heat.
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
from fastopt.bench.peers import DROP_INS, PEERS, SURFACES, Contestant, Peer
from fastopt.bench.process import PeerError, Process


def beside(entry: Entry, chosen: Sequence[str]) -> dict[str, Peer]:
    """Give the peers that stand beside an entry's case, of those chosen by name."""
    if entry.peers == "calls":
        return {"torch fused": PEERS["torch fused"], **SURFACES} if "torch fused" in chosen else dict(SURFACES)
    known = {name: PEERS[name] for name in chosen}
    if entry.peers == "drop-in":
        return {n: p for n, p in known.items() if p.light and n.startswith("torch ")} | DROP_INS
    if entry.peers in ("light", "torch"):
        return {n: p for n, p in known.items() if p.light and (entry.peers == "light" or n.startswith("torch "))}
    return known if entry.peers == "all" else {}


def measure(
    entry: Entry, repeats: int, chosen: Sequence[str], say: Callable[[str], object] = lambda _: None
) -> dict[str, Any]:
    """Time one entry and give its record. `say` is told what is being done."""
    case, peers = entry.case, beside(entry, chosen)
    record: dict[str, Any] = {
        "part": entry.part, "case": case.as_dict(), "traffic": case.traffic, "seconds": {}, "versus": {}, "share": None,
        "cannot": {}, "notes": {},
    }  # fmt: skip
    if (need := problem.memory_needed(case)) > (free := problem.memory_free()):
        record["cannot"] = {"fastopt": f"it needs {need / 2**30:.0f} GiB of memory, and {free / 2**30:.0f} are free"}
        return record
    able: dict[str, Peer] = {}
    for name, peer in peers.items():
        why = peer.absent() or peer.cannot(case)
        if why:
            record["cannot"][name] = why
        else:
            able[name] = peer
    with threads(case.threads):
        say("fastopt")
        check.check_ours(case)
        made = problem.optimizer(case)
        own = problem.shared(made)
        ours = {"fastopt": clock.timed(made.step)}
        with_ceiling = {**ours, "ceiling": clock.timed(problem.passes(case, own))} if case.backend == "cpu" else ours
        near, samples = dict(with_ceiling), {}
        for name, peer in able.items():
            if not peer.apart:
                say(name)
                contestant = here(case, peer, own, record)
                if contestant:
                    near[name] = clock.timed(contestant.step, contestant.ready)
                    record["notes"] |= {name: contestant.note} if contestant.note else {}
        say("racing")
        samples = clock.race(near, repeats)
        keep(record, samples)
        del near, with_ceiling
        gc.collect()
        for name, peer in able.items():
            if peer.apart:
                say(name)
                _apart(case, name, ours, repeats, record)
    return record


@contextmanager
def threads(count: int):
    """Let fastopt share a step among so many threads, as long as it lasts."""
    before = fastopt.get_threads()
    fastopt.set_threads(count)
    try:
        yield
    finally:
        fastopt.set_threads(before)


def here(case: Case, peer: Peer, own: problem.Problem, record: dict[str, Any]) -> Contestant | None:
    """Check a peer in this process and make it ready; one that fails is named, and the others go on."""
    try:
        peer.load(case.threads)
        if getattr(peer, "comparable", True):
            check.check_peer(case, peer)
        return peer.tune(case, peer.make(case, own))
    except Exception as error:  # whatever a library raises
        first = str(error).strip().splitlines() or [""]
        record["cannot"][peer.name] = f"failed: {type(error).__name__}: {first[0][:300]}"
        return None


def _apart(case: Case, name: str, ours: Mapping[str, clock.Timed], repeats: int, record: dict[str, Any]) -> None:
    """Race fastopt and a peer in its own process; one that fails is named, and the others go on."""
    try:
        with Process(name, case.threads) as process:
            note = process.prepare(case)
            record["notes"] |= {name: note} if note else {}
            keep(record, clock.race({**ours, name: partial(process.seconds)}, repeats))
    except PeerError as error:
        record["cannot"][name] = f"failed: {error}"


def keep(record: dict[str, Any], samples: Mapping[str, list[float]]) -> None:
    """Add a heat to the record: each one's seconds, and how many times as fast as it fastopt is."""
    for name, taken in samples.items():
        record["seconds"].setdefault(name, clock.percentiles(taken))
        if name not in ("fastopt", "ceiling"):
            record["versus"][name] = clock.speed(samples["fastopt"], taken)
    if "ceiling" in samples:
        record["share"] = clock.speed(samples["fastopt"], samples["ceiling"])
