"""Tests that need a GPU. They are skipped where there is none; with --require-cuda that is a failure instead."""

import pytest

from fastopt import BackendError
from fastopt.kernels.cuda import require_device


def pytest_addoption(parser):
    parser.addoption("--require-cuda", action="store_true", help="fail, instead of skip, where there is no GPU")


@pytest.fixture(scope="session")
def cupy(request):
    """CuPy, on a machine with a GPU."""
    try:
        return require_device("tests/device")
    except BackendError as error:
        if request.config.getoption("--require-cuda", default=False):
            pytest.fail(str(error))
        pytest.skip(str(error).splitlines()[0])
