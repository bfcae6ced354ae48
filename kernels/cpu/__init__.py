"""The CPU backend: prints a Program as a Python module, compiles it with Numba, runs it on rows of addresses."""

from fastopt.kernels.cpu.launch import bind, steps
from fastopt.kernels.cpu.printer import print_source

__all__ = ["bind", "print_source", "steps"]
