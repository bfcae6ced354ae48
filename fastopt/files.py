"""Checkpoints on disk: one safetensors file, whole or not at all, verified when it is read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fastopt.checkpoint import Checkpoint
from fastopt.errors import CheckpointError, FastoptError, raised_by
from fastopt.optimizer import Optimizer

FORMAT = "fastopt 1"
_TYPES = {"F32": np.dtype("<f4"), "F64": np.dtype("<f8")}


@raised_by("save")
def save(path: str | os.PathLike, optimizer: Optimizer | Mapping[str, Any]) -> None:
    """Save an Optimizer, or what its `state_dict` returned, in one safetensors file, whole or not at all.

    The file is written under another name in the same folder, brought to the disk, and renamed. So at every moment,
    also after a power cut, `path` is the former checkpoint or the new one. Parts that killed processes have left in the
    folder are removed.

    It holds parameters and state in the computing precision, by the names of `state_dict`; as metadata t, seed, rules,
    storage, the order of the parameters and groups, the format's version, and a SHA-256 of all of it. Anything that
    reads safetensors reads it.

    Args:
        path: the file; its folder must exist.
        optimizer: the optimizer. Another thread may step it meanwhile: what is saved is of one moment.

    Raises:
        CheckpointError: the file cannot be written. The former file is as it was.

    """
    import json  # 2 ms that `import fastopt` need not take, and hashlib 8

    target = Path(path)
    described = {} if isinstance(optimizer, Mapping) else optimizer.described()
    state = dict(optimizer) if isinstance(optimizer, Mapping) else optimizer.state_dict()
    tensors = {name: np.asarray(x, order="C") for name, x in state.items() if "/" in name}
    metadata = {name: str(x) for name, x in state.items() if "/" not in name}
    metadata |= {name: json.dumps(x) for name, x in described.items()} | {"format": FORMAT}
    metadata["sha256"] = _digest(metadata, tensors)
    with _errors(target, "written"):
        _remove_abandoned(target)
        with _part(target) as part:
            with part.open("rb+") as file:
                _write(file, tensors, metadata)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, target)
        _sync_folder(target.parent)


@raised_by("load")
def load(path: str | os.PathLike) -> Checkpoint:
    """Read what `save` wrote, for `Optimizer.load_state_dict`. The file is mapped into memory, and verified.

        opt.load_state_dict(fastopt.load("run.safetensors"))

    Returns:
        A dict as `state_dict` returns it, whose arrays are read-only views of the file. Its `metadata` is what else the
        file says: "storage", "layout" (the rule and the parameters of each group), "format".

    Raises:
        CheckpointError: there is no such file, it is no checkpoint of fastopt's, it was cut short or altered, or it is
            of a later format; or safetensors is not installed.

    """
    import json

    library, source = _library(), Path(path)
    with _errors(source, "read"):
        with library.safe_open(source, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            parts = [(name, file.get_slice(name)) for name in file.offset_keys()]
            described = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in parts}
        expected, form = metadata.pop("sha256", ""), metadata.get("format", "")
        if form != FORMAT:
            what, got = "this is not a checkpoint of this version of fastopt's.", form or "no format in its metadata"
            raise CheckpointError(what, got=f"{source}: {got}", expected=f"format {FORMAT}")
        arrays = _mapped(source, described)
        if _digest(metadata, arrays) != expected:
            do = "use an earlier one; nothing was changed"
            raise CheckpointError("the checkpoint was altered since it was written.", got=str(source), do=do)
    rest = {name: json.loads(metadata.pop(name)) for name in ("storage", "layout") if name in metadata}
    del metadata["format"]
    state = {name: int(x) if name in ("t", "seed") else x for name, x in metadata.items()}
    return Checkpoint({**state, **arrays}, {**rest, "format": form})


def _write(file: BinaryIO, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write the format of safetensors: the header's length, the header, the tensors without gaps.

    The library would make a copy of all tensors, or leave a temporary file of its own behind when it is killed.
    """
    import json

    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    names, end = {dtype: name for name, dtype in _TYPES.items()}, 0
    for name, x in tensors.items():
        start, end = end, end + x.nbytes
        header[name] = {"dtype": names[x.dtype.newbyteorder("<")], "shape": x.shape, "data_offsets": (start, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
    file.write(len(text).to_bytes(8, "little") + text)
    for x in tensors.values():
        file.write(x.astype(x.dtype.newbyteorder("<"), copy=False).reshape(-1).view(np.uint8).data)


def _mapped(path: Path, described: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, np.ndarray]:
    """View the tensors of a safetensors file, which lie behind its header in this order, without gaps."""
    memory = np.memmap(path, np.uint8, mode="r") if path.stat().st_size else np.empty(0, np.uint8)
    start, found = 8 + int(memory[:8].view("<u8")[0]), {}
    for name, (kind, shape) in described.items():
        dtype = _TYPES[kind]
        end = start + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        found[name] = np.frombuffer(memory[start:end], np.uint8).view(dtype).reshape(shape)
        start = end
    return found


@contextmanager
def _part(target: Path) -> Iterator[Path]:
    """Make a file beside the target, locked while it is written, and remove it where it was not renamed."""
    part = target.parent / f".{target.name}.{os.urandom(6).hex()}{_PART}"
    handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)  # as the process makes its files
    try:
        _lock(handle)
        if target.exists():
            os.chmod(part, target.stat().st_mode & 0o777)
        yield part
    finally:
        os.close(handle)
        with suppress(FileNotFoundError):
            os.unlink(part)


_PART = ".part"


def _remove_abandoned(target: Path) -> None:
    """Remove parts that nobody is writing any more."""
    for path in target.parent.glob(f".{target.name}.*{_PART}"):
        with suppress(OSError):
            handle = os.open(path, os.O_RDWR)
            try:
                if _lock(handle):
                    path.unlink()
            finally:
                os.close(handle)


def _lock(handle: int) -> bool:
    """Lock a file, and return whether nobody had; a system without such locks says that somebody has."""
    try:
        from fcntl import LOCK_EX, LOCK_NB, flock
    except ImportError:  # Windows
        return False
    try:
        flock(handle, LOCK_EX | LOCK_NB)
    except OSError:
        return False
    return True


def _sync_folder(folder: Path) -> None:
    """Bring a renamed file's name to the disk, where the system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def _errors(path: Path, done: str) -> Iterator[None]:
    """Turn errors of the disk, and of a file that is no safetensors file, into a CheckpointError."""
    try:
        yield
    except FastoptError:
        raise
    except Exception as error:  # safetensors has its own, and what a damaged header leads to may be any
        do = "see that the folder exists, can be written to, and has room" if done == "written" else None
        got = f"{path}: {error}" if str(path) not in str(error) else str(error)
        raise CheckpointError(f"the checkpoint cannot be {done}.", got=got[:500], do=do) from error


def _library() -> Any:
    """Import safetensors, whose checks of a file's header are not made here once more."""
    try:
        import safetensors
    except ImportError as error:
        do = "pip install safetensors"
        raise CheckpointError("reading checkpoints takes safetensors.", got=str(error), do=do) from error
    return safetensors


def _digest(metadata: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> str:
    """Return a digest of everything, whatever its order in the file."""
    import hashlib
    import json

    digest = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name in sorted(arrays):
        digest.update(json.dumps([name, arrays[name].dtype.str, arrays[name].shape]).encode())
        digest.update(arrays[name].reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
