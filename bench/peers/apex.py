"""NVIDIA Apex: CUDA kernels, built from source. It has none for the CPU, which the results say."""

from __future__ import annotations

from fastopt.bench.cases import Case
from fastopt.bench.peers.adapter import Peer


class Apex(Peer):
    """FusedAdam and others."""

    name, packages = "Apex", ("apex",)

    def cannot(self, case: Case) -> str | None:
        """Refuse every case: Apex has no optimizers for the CPU, and this adapter does not make those for CUDA."""
        return "its fused optimizers need a CUDA device"
