"""NVIDIA Apex: CUDA kernels, built from source. On the CPU there is nothing of it to time, and the table says so."""

from __future__ import annotations

from fastopt.bench.cases import Case
from fastopt.bench.peers.adapter import Peer


class Apex(Peer):
    """FusedAdam and others."""

    name, packages = "Apex", ("apex",)

    def cannot(self, case: Case) -> str | None:
        """Refuse every case on the CPU."""
        return "its fused optimizers need a CUDA device"
