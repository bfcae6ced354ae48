"""PEERS: the libraries that fastopt is compared with, each with a small adapter. All are optional.

An adapter says which packages are not installed (`absent`) and why it does not support a case (`cannot`), and makes a
step on the arrays of a case. Libraries that start threads or compilers run in their own process (worker.py).
"""

from __future__ import annotations

from fastopt.bench.peers.adapter import Contestant, Peer
from fastopt.bench.peers.apex import Apex
from fastopt.bench.peers.apis import APIS
from fastopt.bench.peers.bitsandbytes import BitsAndBytes
from fastopt.bench.peers.deepspeed import DeepSpeed
from fastopt.bench.peers.drop_in import DropIn
from fastopt.bench.peers.flashoptim import FlashOptim
from fastopt.bench.peers.norm import Norm, Reading
from fastopt.bench.peers.numpy import NumPy
from fastopt.bench.peers.optax import Optax
from fastopt.bench.peers.torch import Torch
from fastopt.bench.peers.torch_passes import FastoptTorch, TorchLAMB, TorchPasses
from fastopt.bench.peers.torchao import TorchAO

__all__ = ["APIS", "DROP_INS", "PASSES", "PEERS", "Contestant", "Peer"]

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
"""fastopt.torch: not a peer, but timed in the same way, on torch tensors."""

PASSES: dict[str, Peer] = {peer.name: peer for peer in (TorchPasses(), TorchLAMB(), FastoptTorch(), Norm(), Reading())}
"""AdamW and what surrounds its step in torch's passes, LAMB by torch's operations, fastopt.torch, the norm alone."""
