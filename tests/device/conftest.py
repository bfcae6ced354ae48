"""Tests that need a GPU. They are skipped where there is none; with --require-cuda that is a failure instead."""

import pytest

from fastopt import BackendError
from fastopt.kernels.devices import require_device


def pytest_addoption(parser):
    parser.addoption("--require-cuda", action="store_true", help="fail, instead of skip, where there is no GPU")


@pytest.fixture(scope="session")
def missing(request):
    """What to call where something is missing that a test needs."""
    return pytest.fail if request.config.getoption("--require-cuda", default=False) else pytest.skip


@pytest.fixture(scope="session")
def cupy(missing):
    """CuPy, on a machine with a GPU."""
    try:
        return require_device()
    except BackendError as error:
        missing(str(error))
