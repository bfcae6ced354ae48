"""The CUDA backend: prints a Program as CUDA C++, compiles it with NVRTC, launches it on rows of device addresses."""

from fastopt.kernels.cuda.launch import bind
from fastopt.kernels.cuda.printer import print_source
from fastopt.kernels.launch import steps

__all__ = ["bind", "print_source", "steps"]
