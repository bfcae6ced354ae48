"""A fake CuPy for machines without a GPU: arrays are in host memory, and cuda_host runs the kernels on the host.

It has only what fastopt uses of CuPy, so that any other use fails, and it is as strict as a device: an array does not
convert to a NumPy array, a kernel runs only while its arrays' device is the current one, and while a stream is being
captured launches are recorded instead of run. It tests what fastopt does around a kernel (which device, stream, grid
and arguments, in what order). That CuPy and a GPU behave like this is tested in tests/device.

Over 300 lines: it is one package, and each class stands for one of CuPy's.
"""

from __future__ import annotations

import ctypes
import hashlib
import re
import tempfile
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_host import COMPILER, compile_library

from fastopt.kernels.cuda.nvrtc import OPTIONS

_state = types.SimpleNamespace(
    device=0, streams=[], current={}, count=2, launches=[], broken=None, capability=90, compiled=0
)


class CUDARuntimeError(RuntimeError):
    """Raised by CuPy for errors of the CUDA runtime."""


class Device:
    """A device by its number; `with` makes it the current one."""

    def __init__(self, number: int | None = None):
        self.id = _state.device if number is None else number
        self._before: list[int] = []

    def __enter__(self) -> Device:
        self._before.append(_state.device)
        _state.device = self.id
        return self

    def __exit__(self, *_: object) -> None:
        _state.device = self._before.pop()

    @property
    def compute_capability(self) -> str:
        return str(_state.capability)

    def synchronize(self) -> None:
        assert not get_current_stream().is_capturing(), "synchronized while a stream is captured"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and other.id == self.id

    def __hash__(self) -> int:
        return self.id

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}>"

    __str__ = __repr__


class Graph:
    """Captured launches, with the argument bytes they had when they were captured."""

    def __init__(self, launches: list):
        self._launches = launches

    def launch(self) -> None:
        for kernel, shape, values in self._launches:
            kernel.run_on_host(shape, values)


class Stream:
    """A stream. `with` makes it current; at its end the stream of the enclosing `with` is current, even after `use`."""

    def __init__(self, name: str = "", non_blocking: bool = False):
        self.name, self.device_id = name, -1 if name.startswith("external") else _state.device
        self._captured: list | None = None

    def __enter__(self) -> Stream:
        _state.streams.append(self)
        return self.use()

    def __exit__(self, *_: object) -> None:
        assert _state.streams.pop() is self
        _state.current[_state.device] = _state.streams[-1] if _state.streams else _default

    def use(self) -> Stream:
        assert self.device_id in (-1, _state.device), "a stream of another device than the current one"
        _state.current[_state.device] = self
        return self

    def is_capturing(self) -> bool:
        return self._captured is not None

    def begin_capture(self) -> None:
        self._captured = []

    def end_capture(self) -> Graph:
        graph, self._captured = Graph(self._captured or []), None
        return graph

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, id(self)

    @staticmethod
    def from_external(stream: Any) -> Stream:
        version, handle = stream.__cuda_stream__()
        assert version == 0
        return Stream(f"external {handle}")


_default = Stream("default")


def get_current_stream() -> Stream:
    return _state.current.get(_state.device, _default)


class Memory:
    """The address of an array."""

    def __init__(self, ptr: int):
        self.ptr = ptr

    def __add__(self, offset: int) -> Memory:
        return Memory(self.ptr + offset)

    def copy_from_host_async(self, source: int, size: int) -> None:
        assert not get_current_stream().is_capturing(), "pageable memory was copied while a stream is captured"
        ctypes.memmove(self.ptr, source, size)


class ndarray:  # noqa: N801 — CuPy's name
    """An array "on" a device; its memory is the host's."""

    def __init__(self, host: np.ndarray, device: int | None = None):
        self._host, self.base = host, host.base
        self.device = Device(device)
        self.shape, self.dtype, self.size, self.ndim = host.shape, host.dtype, host.size, host.ndim
        self.itemsize, self.nbytes, self.strides = host.itemsize, host.nbytes, host.strides
        self.flags = types.SimpleNamespace(c_contiguous=host.flags.c_contiguous)
        self.data = Memory(host.ctypes.data)

    def __getitem__(self, key: Any) -> ndarray:
        return ndarray(self._host[key], self.device.id)

    def __setitem__(self, key: Any, value: Any) -> None:
        assert not isinstance(value, np.ndarray), "NumPy arrays are copied to a device by `set`"
        if isinstance(value, ndarray):
            assert value.device == self.device
            value = value._host
        self._host[key] = value

    def reshape(self, *shape: Any) -> ndarray:
        return ndarray(self._host.reshape(*shape), self.device.id)

    def view(self, dtype: Any) -> ndarray:
        return ndarray(self._host.view(dtype), self.device.id)

    def astype(self, dtype: Any) -> ndarray:
        return ndarray(self._host.astype(dtype), self.device.id)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: ndarray) -> ndarray:
        assert method == "__call__"
        return ndarray(ufunc(*(x._host for x in inputs)), self.device.id)

    def __matmul__(self, other: ndarray) -> ndarray:  # all that follows is what functions of matrices do
        assert self.device == other.device == Device()
        return ndarray(self._host @ other._host, self.device.id)

    def swapaxes(self, first: int, second: int) -> ndarray:
        return ndarray(self._host.swapaxes(first, second), self.device.id)

    def __imul__(self, other: Any) -> Any:
        self._host *= other
        return self

    def __iadd__(self, other: Any) -> Any:
        self._host += other._host if isinstance(other, ndarray) else other
        return self

    def copy(self) -> ndarray:
        return ndarray(self._host.copy())  # on the current device, as CuPy does

    def fill(self, value: float) -> None:
        self._host.fill(value)

    def get(self) -> np.ndarray:
        return self._host.copy()

    def set(self, value: np.ndarray) -> None:
        assert type(value) is np.ndarray
        assert (value.dtype, value.shape) == (self.dtype, self.shape)
        self._host[...] = value

    def __array__(self, *_: object, **__: object) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.device.id

    def __len__(self) -> int:
        return len(self._host)

    def __int__(self) -> int:
        return int(self._host)


def _adopt(value: Any) -> ndarray:
    """Return an array that shares the memory of another library's array."""
    found = value.__cuda_array_interface__
    size = int(np.prod(found["shape"])) * np.dtype(found["typestr"]).itemsize
    raw: Any = (ctypes.c_char * size).from_address(found["data"][0])
    return ndarray(np.frombuffer(raw, found["typestr"]).reshape(found["shape"]), value.device_number)


def asarray(value: Any) -> ndarray:
    if isinstance(value, ndarray):
        return value
    if hasattr(value, "__cuda_array_interface__"):
        return _adopt(value)
    return ndarray(np.array(value))


def from_dlpack(value: Any) -> ndarray:
    return _adopt(value.__dlpack__())


def empty(shape: Any, dtype: Any = np.float64) -> ndarray:
    raw = np.full(int(np.prod(shape)) * np.dtype(dtype).itemsize + 512, 0xA5, np.uint8)
    start = -raw.ctypes.data % 512  # as CuPy's allocator aligns
    size = raw.size - 512
    return ndarray(raw[start : start + size].view(dtype).reshape(shape))


def zeros(shape: Any, dtype: Any = np.float64) -> ndarray:
    made = empty(shape, dtype)
    made.fill(0)
    return made


class Function:
    """An entry point of a module."""

    def __init__(self, module: Module, name: str):
        self._module, self._name = module, name

    def __call__(self, grid: tuple, block: tuple, args: tuple) -> None:
        values = [_argument(a) for a in args]
        stream = get_current_stream()
        _state.launches.append((self._name, grid, _state.device, stream))
        shape = (grid[0], block[0])
        if stream._captured is not None:
            stream._captured.append((self, shape, values))
        else:
            self.run_on_host(shape, values)

    def run_on_host(self, shape: tuple[int, int], values: list[np.ndarray]) -> None:
        pointers = (ctypes.c_void_p * len(values))(*[a.ctypes.data for a in values])
        run = getattr(self._module.library(), f"run_{self._name}")
        run(ctypes.c_longlong(shape[0]), shape[1], pointers)


def _argument(x: Any) -> np.ndarray:
    """Return what CuPy passes to a kernel: an array's address, a NumPy scalar as it is, a Python number in 64 bits."""
    if isinstance(x, ndarray):
        assert x.device.id == _state.device, "an array of another device than the current one"
        return np.atleast_1d(np.uint64(x.data.ptr))
    assert isinstance(x, np.generic | int | float)
    return np.atleast_1d(np.int64(x) if isinstance(x, int) else x).copy()


class Module:
    """The "machine code" that `_Nvrtc` below produces, which is the source text; g++ compiles it for the host."""

    _libraries: dict[str, ctypes.CDLL] = {}  # noqa: RUF012
    _folder = tempfile.TemporaryDirectory(prefix="fake-cupy-")

    def load(self, code: bytes) -> None:
        assert not get_current_stream().is_capturing(), "a module was loaded while a stream is captured"
        magic, _, self._source = code.decode().partition("\n")
        if magic not in (f"cubin for sm_{_state.capability}", "ptx"):
            raise CUDADriverError("CUDA_ERROR_INVALID_IMAGE: device kernel image is invalid")
        self.library()

    def library(self) -> ctypes.CDLL:
        source = self._source
        name = hashlib.sha256(source.encode()).hexdigest()[:16]
        if name not in self._libraries:
            entries = re.findall(
                r"__global__ [^{]*?(\w+)\s*\(\s*[a-zA-Z]", source.replace("__launch_bounds__(THREADS) ", "")
            )
            wrappers = [
                f'extern "C" void run_{e}(long long blocks, int threads, void** arguments)'
                f" {{ host::launch({e}, blocks, 0, threads, arguments, false); }}"
                for e in entries
            ]
            text = "\n".join(['#include "cuda_host.h"', source, *wrappers])
            self._libraries[name] = compile_library(text, Path(self._folder.name) / f"{name}.so")
        return self._libraries[name]

    def get_function(self, name: str) -> Function:
        return Function(self, name)


class CUDADriverError(RuntimeError):
    """Raised by CuPy for errors of the CUDA driver."""


class _Nvrtc:
    """A fake of CuPy's NVRTC: its "machine code" is a line that names the architecture, followed by the source."""

    class NVRTCError(RuntimeError):
        pass

    def getVersion(self) -> tuple[int, int]:
        if _state.broken:
            raise RuntimeError(_state.broken)
        return 13, 0

    def getSupportedArchs(self) -> tuple[int, ...]:
        return 75, 80, 90

    def createProgram(self, source: str, name: str, headers: tuple, includes: tuple) -> list:
        assert (headers, includes) == ((), ())
        return [source, None]

    def compileProgram(self, program: list, options: tuple[str, ...]) -> None:
        assert options[1:] == OPTIONS
        program[1] = options[0].removeprefix("--gpu-architecture=")
        _state.compiled += 1

    def getCUBIN(self, program: list) -> bytes:
        return f"cubin for {program[1]}\n{program[0]}".encode()

    def getPTX(self, program: list) -> bytes:
        return f"ptx\n{program[0]}".encode()

    def getProgramLog(self, program: list) -> str:
        return ""

    def destroyProgram(self, program: list) -> None:
        program.clear()


def install() -> types.ModuleType:
    """Return this as a module, for `import cupy` to find in sys.modules, with its state and recorded launches reset.

    Skips the test that calls it where there is no g++.
    """
    if COMPILER is None:
        pytest.skip("needs g++, which compiles the kernels for the host")
    _state.device, _state.count, _state.broken, _state.capability, _state.compiled = 0, 2, None, 90, 0
    _state.streams, _state.launches, _state.current = [], [], {}
    module = types.ModuleType("cupy")
    found = {"name": b"a stand-in", "major": 9, "minor": 0, "totalGlobalMem": 80 << 30}
    runtime = types.SimpleNamespace(
        getDeviceCount=_count, CUDARuntimeError=CUDARuntimeError, getDeviceProperties=lambda device: found
    )
    names = (ndarray, asarray, from_dlpack, empty, zeros)
    module.__dict__.update({x.__name__: x for x in names}, __version__="0 (a stand-in)")
    module.__dict__["cuda"] = types.SimpleNamespace(
        Device=Device,
        Stream=Stream,
        Module=Module,
        nvrtc=_Nvrtc(),
        get_current_stream=get_current_stream,
        runtime=runtime,
    )
    module.__dict__["state"] = _state
    return module


def _count() -> int:
    if _state.count == 0:
        raise CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")
    return _state.count


def foreign_array(host: np.ndarray, device: int = 0, *, dlpack: bool = False, read_only: bool = False) -> Any:
    """Make an array of "another library" that exposes device memory by one protocol.

    The protocol is `__cuda_array_interface__`, or DLPack if `dlpack` is set.
    """
    interface = {"shape": host.shape, "typestr": host.dtype.str, "data": (host.ctypes.data, read_only), "version": 3}
    tensor = types.SimpleNamespace(device_number=device, shape=host.shape, __cuda_array_interface__=interface)
    if not dlpack:
        return tensor
    return types.SimpleNamespace(shape=host.shape, __dlpack_device__=lambda: (2, device), __dlpack__=lambda **_: tensor)
