"""The folder of compiled kernels: shared by processes, private to the user, verified, and not needed.

What is read from it runs as code. Over 300 lines: each way to damage, plant or lack it.
"""

from __future__ import annotations

import errno
import os
import pickle
import re
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from processes import output, run

import fastopt
from fastopt.kernels import cache
from fastopt.kernels.compiler.trace import trace
from fastopt.kernels.cpu.launch import compiled

ONE_STEP = """
import numpy as np, fastopt
p, m, v = np.ones(10), np.zeros(10), np.zeros(10)
fastopt.update(fastopt.Adam(lr=0.1), 1, {"p": p, "g": np.ones(10), "m": m, "v": v})
from fastopt.kernels.cpu.launch import compiled; from fastopt.kernels.compiler.trace import trace
stats = compiled(trace(fastopt.Adam(), p.dtype)).stats
print(p[0].round(6), sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))
"""
HIT, MISS = ["0.9", "1", "0"], ["0.9", "0", "1"]
posix = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Windows has no such owners and modes")


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kernels")
    assert output(run(ONE_STEP, folder)).split() == MISS
    return folder


@pytest.fixture
def filled(compiled_once, tmp_path):
    """Return a folder with the kernel of `ONE_STEP`."""
    shutil.copytree(compiled_once, tmp_path, dirs_exist_ok=True)
    return tmp_path


def warned(process: subprocess.Popen, *texts: str) -> list[str]:
    """Assert that a process succeeds with one CacheWarning that has these texts, and return its words."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert err.count("CacheWarning: ") == 1, err
    for text in texts:
        assert text in err
    return out.split()


def test_concurrent_processes_can_fill_an_empty_cache_and_later_ones_compile_nothing(tmp_path):
    together = [run(ONE_STEP, tmp_path) for _ in range(4)]
    assert {output(process).split()[0] for process in together} == {"0.9"}
    assert output(run(ONE_STEP, tmp_path)).split() == HIT
    assert not list(tmp_path.rglob("*.part"))


# Folders that cannot be written, and machines without any.


@pytest.mark.parametrize("obstacle", ["a file has its name", "the file system is read-only"])
def test_an_unwritable_cache_folder_is_a_warning(obstacle, tmp_path):
    folder = tmp_path / "file"
    folder.write_text("")
    if obstacle != "a file has its name":
        folder = Path("/proc/self")  # not even root can create a folder there
        if not folder.exists():
            pytest.skip("this system has no /proc")
    assert warned(run(ONE_STEP, folder), "compiled kernels cannot be stored on disk", str(folder)) == MISS


def test_a_stored_kernel_is_read_where_nothing_can_be_written(tmp_path, monkeypatch):
    output(run(ONE_STEP, tmp_path))
    (path,) = tmp_path.rglob("adam*.code")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cache.tempfile, "mkstemp", read_only)
    assert cache.folder.__wrapped__(path.parent.name) == path.parent
    assert cache.read(path)
    with pytest.warns(fastopt.CacheWarning, match="Read-only file system"):
        cache.write(path.with_name("other.code"), b"")
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def read_only(*_, **__):
    raise OSError(errno.EROFS, "Read-only file system")


def test_nothing_is_written_for_a_user_without_a_home_folder(tmp_path):
    code = f"import os; os.path.expanduser = lambda path: path; os.chdir({str(tmp_path)!r})" + ONE_STEP
    assert warned(run(code, Path("relative")), "no home folder") == MISS
    assert warned(run(code, Path()), "no home folder") == MISS
    assert not list(tmp_path.iterdir())


def test_the_package_may_be_in_a_zip_file(tmp_path):
    archive, root = tmp_path / "app.zip", Path(__file__).parent.parent
    with zipfile.ZipFile(archive, "w") as file:
        for folder, inside in (("fastopt", "fastopt"), ("kernels", "fastopt/kernels")):
            for path in (root / folder).rglob("*.py"):
                if not {"kernels", "bench", "__pycache__"} & set(path.relative_to(root / folder).parts):
                    file.write(path, f"{inside}/{path.relative_to(root / folder)}")
    first = f"import sys; sys.path.insert(0, {str(archive)!r})"
    hidden = "sys.meta_path[:] = [m for m in sys.meta_path if 'editable' not in repr(m)]"
    code = f"{first}; {hidden}{ONE_STEP}assert fastopt.__file__.startswith({str(archive)!r})"
    assert output(run(code, tmp_path)).split() == MISS
    assert output(run(code, tmp_path)).split() == HIT


def test_numba_that_compiles_nothing_is_an_error(tmp_path):
    code = """
import numpy as np, fastopt
b = {name: np.ones(3) for name in "pg"}
try:
    fastopt.update(fastopt.SGD(), 1, b)
except fastopt.BackendError as error:
    print(error)
fastopt.update(fastopt.SGD(lr=0.5), 1, b, backend="reference")
print(b["p"])
"""
    out = output(run(code, tmp_path, NUMBA_DISABLE_JIT="1"))
    assert re.search(r'(?s)NUMBA_DISABLE_JIT is set.*do  .*backend="reference".*\[0.5 0.5 0.5\]', out)


def fresh_rule(name: str):
    """Make a rule with a random constant, so that its kernel is not in any cache."""
    from test_program import rule

    constant = float(np.random.default_rng().random())
    return rule(lambda self, p, g: p - constant * g, name=name)


def test_a_full_disk_is_a_warning(monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    p, mine = np.ones(4), fresh_rule("FullDisk")
    with pytest.warns(fastopt.CacheWarning, match=r"(?s)cannot be stored on disk.*No space left"):
        fastopt.update(mine, 1, {"p": p, "g": np.ones(4)})
    assert np.all(p < 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastopt.update(mine, 2, {"p": p, "g": np.ones(4)})


# Damage.


DAMAGE = {
    "cut short": lambda data: data[:-1],
    "half of it": lambda data: data[: len(data) // 2],
    "the digest alone": lambda data: data[:32],
    "cut within the digest": lambda data: data[:10],
    "empty": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
    "the second half zeros": lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
    "longer": lambda data: data + b"\0",
    "one bit of the machine code": lambda data: flipped(data, data.find(b"\x7fELF") + 0x200),
}


def flipped(data: bytes, at: int, bit: int = 3) -> bytes:
    return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_kernel_is_not_read(damage, filled):
    (path,) = filled.rglob("adam*.code")
    whole = path.read_bytes()
    assert cache.read(path)
    path.write_bytes(DAMAGE[damage](whole))
    assert path.read_bytes() != whole
    with pytest.warns(fastopt.CacheWarning, match="was damaged; it is compiled again and replaced"):
        assert cache.read(path) is None


@pytest.mark.parametrize("damage", ["empty", "one bit of the machine code"])
def test_a_damaged_kernel_is_reported_once_and_replaced(damage, filled):
    (path,) = filled.rglob("adam*.code")
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    assert warned(run(ONE_STEP, filled), "was damaged; it is compiled again and replaced") == MISS
    assert output(run(ONE_STEP, filled)).split() == HIT


def test_no_flipped_bit_is_read(tmp_path):
    """Each bit of the first and last bytes, and 2,000 bits anywhere."""
    path, rng = tmp_path / "x.code", np.random.default_rng(0)
    content = rng.bytes(40_000)
    cache.write(path, content)
    data = path.read_bytes()
    assert cache.read(path) == content
    ends = [(at, bit) for at in (*range(40), *range(-40, 0)) for bit in range(8)]
    anywhere = zip(rng.integers(0, len(data), 2000).tolist(), rng.integers(0, 8, 2000).tolist(), strict=True)
    for at, bit in (*ends, *anywhere):
        path.write_bytes(flipped(data, at % len(data), bit))
        with pytest.warns(fastopt.CacheWarning, match="damaged"):
            assert cache.read(path) is None


def test_a_kernel_that_cannot_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    cache.write(tmp_path / "x.code", b"content")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda _: (_ for _ in ()).throw(OSError(errno.EMFILE, "Too many open files")))
        with pytest.warns(fastopt.CacheWarning, match=r"(?s)cannot be read.*Too many open files"):
            assert cache.read(tmp_path / "x.code") is None
    assert cache.read(tmp_path / "x.code") == b"content"


def test_a_folder_in_place_of_a_kernel_is_a_warning(filled):
    (path,) = filled.rglob("adam*.code")
    path.unlink()
    path.mkdir()
    process = run(ONE_STEP, filled)
    out, err = process.communicate(timeout=300)
    assert (out.split(), process.returncode) == (MISS, 0), err
    assert "Is a directory" in err
    assert "cannot be stored on disk" in err


# Other users.


class Planted:
    """Pickled, it runs a command when it is read."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def planted(folder: Path) -> Path:
    """Replace a kernel by code with a right digest; return the file that it makes if it runs."""
    (path,) = folder.rglob("adam*.code")
    cache.write(path, pickle.dumps(Planted(folder / "it ran")))
    return folder / "it ran"


def test_planted_code_would_run(filled):
    """Which is why the folder must be the user's own."""
    mark = planted(filled)
    assert "TypeError" in run(ONE_STEP, filled).communicate(timeout=300)[1]
    assert mark.exists()


@posix
@pytest.mark.parametrize(
    ("where", "mode"),
    [
        ("the folder of kernels", 0o777),
        ("the folder of kernels", 0o775),
        ("the cache folder", 0o777),
        ("the cache folder", 0o775),
        ("a folder above", 0o777),  # many systems give each user a group of its own, which may write: 0o775 is usual
    ],
)
def test_nothing_is_read_from_a_folder_that_others_can_write_to(where, mode, filled):
    mark, (path,) = planted(filled), filled.rglob("adam*.code")
    spoiled = {"the folder of kernels": path.parent, "the cache folder": path.parent.parent}.get(where, filled)
    spoiled.chmod(mode)
    try:
        assert warned(run(ONE_STEP, filled), "can be written by other users", "chmod") == MISS
    finally:
        spoiled.chmod(0o700)
    assert not mark.exists()


@posix
@pytest.mark.skipif(os.name == "posix" and os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("where", ["the folder of kernels", "the cache folder", "a link to it", "a link above"])
def test_nothing_is_read_from_a_folder_of_another_user(where, filled):
    mark, (path,) = planted(filled), filled.rglob("adam*.code")
    folder = filled
    if where == "the folder of kernels":
        os.chown(path.parent, 65534, -1)
    elif where == "the cache folder":
        os.chown(path.parent.parent, 65534, -1)
    else:
        folder = filled / "other"
        if where == "a link above":
            folder.symlink_to(filled)
            os.chown(folder, 65534, -1, follow_symlinks=False)
        else:
            folder.mkdir()
            (folder / "fastopt").symlink_to(filled / "fastopt")
            os.chown(folder / "fastopt", 65534, -1, follow_symlinks=False)
    assert warned(run(ONE_STEP, folder), "belongs to another user") == MISS
    assert not mark.exists()


@posix
def test_a_folder_of_another_user_is_refused_also_by_who_is_not_root(tmp_path, monkeypatch):
    (folder := tmp_path / "fastopt" / "kind").mkdir(parents=True, mode=0o700)
    folder.parent.chmod(0o700)
    assert cache.untrusted(folder) is None
    owner = folder.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    if owner:  # root's folders are trusted by all
        assert cache.untrusted(folder) == f"{folder} belongs to another user"


@posix
def test_a_link_of_the_users_own_is_followed(tmp_path):
    (real := tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(real)
    assert output(run(ONE_STEP, tmp_path / "link")).split() == MISS
    assert output(run(ONE_STEP, tmp_path / "link")).split() == HIT
    assert list(real.rglob("*.code"))


@posix
def test_the_folder_is_the_users_own_whatever_the_umask(tmp_path):
    assert output(run(f"import os; os.umask(0)\n{ONE_STEP}", tmp_path)).split() == MISS
    made = list((tmp_path / "fastopt").rglob("*"))
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "fastopt", *made) if path.is_dir()} == {0o700}
    assert {path.stat().st_mode & 0o777 for path in made if path.is_file()} == {0o600}


# Names and keys.


@pytest.mark.parametrize("length", [120, 260])
def test_a_kernel_with_a_long_name_is_cached(length):
    from numba.core import event

    mine = fresh_rule("Long" * (length // 4))
    buffers = {"p": np.ones(4), "g": np.ones(4)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastopt.update(mine, 1, buffers)
    kernel = compiled(trace(mine, np.dtype(np.float64)))
    assert kernel._cache.path.exists()
    with event.install_recorder("numba:compile") as recorder:
        fastopt.update(mine, 2, buffers)
    assert not recorder.buffer


def test_code_for_another_processor_is_not_read(tmp_path):
    assert output(run(ONE_STEP, tmp_path)).split() == MISS
    assert output(run(ONE_STEP, tmp_path, NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="")).split() == MISS
    assert len(list(tmp_path.rglob("adam*.code"))) == 2
    assert output(run(ONE_STEP, tmp_path)).split() == HIT


def test_tracebacks_and_debuggers_find_the_printed_lines():
    import inspect

    kernel = compiled(trace(fastopt.Adam(), np.dtype(np.float32)))
    assert "def adam_pf32" in inspect.getsource(kernel.py_func)
    assert not os.path.exists(kernel.py_func.__code__.co_filename)
    assert kernel.py_func.__module__ in sys.modules
