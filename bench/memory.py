"""The memory of a step: that of a fresh process after some steps, and its peak during a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastopt.bench.cases import Case
from fastopt.bench.peers import PEERS
from fastopt.bench.process import PeerError, Process


def measure(
    case: Case, names: list[str], storages: list[str], on_progress: Callable[[str], object] = lambda _: None
) -> dict[str, Any]:
    """Return the record: resident and peak bytes per parameter, less the memory of the process after a small step.

    fastopt is measured with each of `storages`, the peers in `names` with the storage of the case.
    """
    record: dict[str, Any] = {"part": "memory", "case": case.as_dict(), "bytes": {}, "cannot": {}}
    asked = [("fastopt", storage) for storage in storages] + [(name, case.storage) for name in names]
    for name, storage in asked:
        one = Case(**{**case.as_dict(), "storage": storage})
        label = f"fastopt {storage}" if name == "fastopt" else name
        on_progress(label)
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
