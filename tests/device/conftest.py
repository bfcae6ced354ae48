"""Tests that need a GPU. Without one they are skipped, or fail with --require-cuda."""

import pytest

from fastopt import BackendError
from fastopt.kernels.devices import require_device


def pytest_addoption(parser):
    parser.addoption("--require-cuda", action="store_true", help="fail instead of skipping when there is no GPU")


@pytest.fixture(scope="session")
def missing(request):
    """Return the function to call when something is missing that a test needs: pytest.fail or pytest.skip."""
    return pytest.fail if request.config.getoption("--require-cuda", default=False) else pytest.skip


@pytest.fixture(scope="session")
def cupy(missing):
    """Return CuPy; skip or fail if there is no GPU."""
    try:
        return require_device()
    except BackendError as error:
        missing(str(error))
