"""FlashOptim: Triton kernels for CUDA devices. On the CPU there is nothing of it to time, and the table says so."""

from __future__ import annotations

from fastopt.bench.cases import Case
from fastopt.bench.peers.adapter import Peer


class FlashOptim(Peer):
    """FlashAdamW and others."""

    name, packages = "FlashOptim", ("flashoptim", "triton")

    def cannot(self, case: Case) -> str | None:
        """Refuse every case on the CPU."""
        return "its fused, compressed steps need a CUDA device"
