"""The CPU backend: prints a Program as a Python module, compiles it with Numba, runs it on rows of addresses."""

from fastopt.kernels.cpu.launch import bind
from fastopt.kernels.cpu.printer import print_source
from fastopt.kernels.launch import steps

__all__ = ["bind", "print_source", "steps"]
