"""PEERS: the libraries that stand beside fastopt, each a small adapter that is optional and checked before it is timed.

An adapter says what is missing (`absent`), what it cannot do (`cannot`) and makes its step on the memory of a case.
Those that start threads or compilers of their own get a process of their own (worker.py) and take turns by a pipe.
"""

from __future__ import annotations

from fastopt.bench.peers.adapter import Contestant, Peer
from fastopt.bench.peers.apex import Apex
from fastopt.bench.peers.bitsandbytes import BitsAndBytes
from fastopt.bench.peers.deepspeed import DeepSpeed
from fastopt.bench.peers.drop_in import DropIn
from fastopt.bench.peers.flashoptim import FlashOptim
from fastopt.bench.peers.numpy import NumPy
from fastopt.bench.peers.optax import Optax
from fastopt.bench.peers.surface import SURFACES
from fastopt.bench.peers.torch import Torch
from fastopt.bench.peers.torchao import TorchAO

__all__ = ["DROP_INS", "PEERS", "SURFACES", "Contestant", "Peer"]

PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        NumPy(),
        Torch("for-loop"),
        Torch("foreach"),
        Torch("fused"),
        Torch("compile"),
        DeepSpeed(),
        Optax(),
        BitsAndBytes(),
        TorchAO(),
        FlashOptim(),
        Apex(),
    )
}

DROP_INS: dict[str, Peer] = {peer.name: peer for peer in (DropIn("table", flatten=False), DropIn("flat", flatten=True))}
"""fastopt's own adapter for torch: no peer, but it stands beside them where tensors are torch's."""
