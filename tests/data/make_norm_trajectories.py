"""Write norm_trajectories.npz: where other libraries' LAMB, LARS and others go, to be followed without them.

    python tests/data/make_norm_trajectories.py

For each row of PEERS in tests/norm_peers.py: all parameters after some of the steps. Deterministic: the same versions
write the same bytes.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent


def main() -> None:
    sys.path.insert(0, str(HERE.parent))
    from norm_peers import PEERS, STORED

    libraries = sorted({peer.library.split(".")[0] for peer in PEERS.values()})
    versions = [f"{name} {version(name)}" for name in ("torch", "jax", "numpy", *libraries)]
    arrays = {"versions": np.array(versions), "stored": np.array(STORED)}
    for name, peer in PEERS.items():
        path = peer.path()
        arrays[name] = np.array([path[t] for t in STORED])
    file = HERE / "norm_trajectories.npz"
    np.savez_compressed(file, allow_pickle=False, **arrays)
    print(f"{file}: {len(PEERS)} trajectories, {file.stat().st_size:,} bytes, made with {', '.join(versions)}")


if __name__ == "__main__":
    main()
