"""Write trajectories.npz: where other libraries go, so that the tests can follow them without one installed.

    python tests/data/make_trajectories.py

For each row of bench/glossary.py: the learning rate of each step, the parameters after some of the steps and
the state after the last. Deterministic: the same versions write the same bytes.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent


def main() -> None:
    sys.path.insert(0, str(HERE.parent))
    from peers import PEERS, START, STORED, path

    libraries = dict.fromkeys([*(peer.library for peer in PEERS.values()), "jax", "numpy"])
    versions = [f"{name} {version(name)}" for name in libraries]
    arrays = {"versions": np.array(versions), "start": START, "stored": np.array(STORED)}
    for name, peer in PEERS.items():
        lr, p, state = path(peer)
        arrays |= {f"{name}/lr": lr, f"{name}/p": p} | {f"{name}/{buffer}": x for buffer, x in state.items()}
    file = HERE / "trajectories.npz"
    np.savez_compressed(file, allow_pickle=False, **arrays)
    print(f"{file}: {len(PEERS)} trajectories, {file.stat().st_size:,} bytes, made with {', '.join(versions)}")


if __name__ == "__main__":
    main()
