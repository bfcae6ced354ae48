"""How much memory a step takes: a fresh process makes the optimizer and steps; what it holds then, and held at most."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastopt.bench.cases import Case
from fastopt.bench.peers import PEERS
from fastopt.bench.process import PeerError, Process


def measure(
    case: Case, names: list[str], ours: list[str], say: Callable[[str], object] = lambda _: None
) -> dict[str, Any]:
    """Give the record: bytes a parameter that each holds beyond those after a small step, resident and at the peak.

    `ours` are the storages of fastopt that are measured; peers keep what the case's storage says.
    """
    record: dict[str, Any] = {"part": "memory", "case": case.as_dict(), "bytes": {}, "cannot": {}}
    asked = [("fastopt", storage) for storage in ours] + [(name, case.storage) for name in names]
    for name, storage in asked:
        one = Case(**{**case.as_dict(), "storage": storage})
        label = f"fastopt {storage}" if name == "fastopt" else name
        say(label)
        why = None if name == "fastopt" else PEERS[name].absent() or PEERS[name].cannot(one)
        if why:
            record["cannot"][label] = why
            continue
        try:
            with Process(name, case.threads) as process:
                found = process.ask("memory", case=one.as_dict())
        except PeerError as error:
            record["cannot"][label] = f"failed: {error}"
            continue
        loaded = found["loaded"]
        record["bytes"][label] = {
            "loaded": loaded,
            **{kind: round((found[kind] - loaded) / case.elements, 2) for kind in ("resident", "peak")},
        }
    return record
