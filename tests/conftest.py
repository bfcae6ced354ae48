"""Fixtures that several files of tests use."""

import subprocess
import sys

import pytest

LIBRARIES = ("torch", "deepspeed", "jax", "bitsandbytes", "torchao", "flashoptim", "apex")


@pytest.fixture
def fast(monkeypatch):
    """Time as little as possible."""
    from fastopt.bench import clock

    monkeypatch.setattr(clock, "MIN_SAMPLE", 0.0)
    monkeypatch.setattr(clock, "PAUSE", 0.0)


@pytest.fixture
def alone(monkeypatch):
    """Pretend that no other library is installed."""
    for name in LIBRARIES:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture
def cupy(monkeypatch, tmp_path):
    """Install the fake CuPy, which runs kernels on the host; return it."""
    import fake_cupy

    from fastopt.kernels import cache
    from fastopt.kernels.cuda import nvrtc

    module = fake_cupy.install()
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr(cache, "folder", lambda kind: tmp_path)
    nvrtc.function.cache_clear()
    yield module
    nvrtc.function.cache_clear()


@pytest.fixture(params=["compiled", "Python"])
def kind(request, monkeypatch):
    """Run a test with the compiled guard and with the Python guard of fastopt.torch; return the guard's name."""
    from fastopt.torch import c_abi

    if request.param == "Python":
        monkeypatch.setattr(c_abi, "functions", lambda: None)
    elif c_abi.functions() is None:
        pytest.skip("torch's C functions are not available here")
    return request.param


@pytest.fixture(scope="session")
def page(tmp_path_factory):
    """Write the page as the documented command does."""
    out = tmp_path_factory.mktemp("laboratory") / "new" / "index.html"
    command = [sys.executable, "-m", "fastopt.demo.laboratory", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == f"{out}: {out.stat().st_size / 1000:.0f} kB\n"
    return out


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    """Start one browser for all tests of a process, with an empty profile."""
    import browser

    found = browser.Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.quit()


@pytest.fixture
def lab(chromium, page):
    """Open the page anew; at the end it must not have reported an error."""
    chromium.resize(1400)
    chromium.open(page)
    chromium.errors()
    yield chromium
    assert chromium.errors() == []
