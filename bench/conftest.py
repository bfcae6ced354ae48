"""Turn pytest-benchmark on for `pytest bench`, in one process; addopts in pyproject.toml is for the tests."""

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    config.option.numprocesses = 0


def pytest_configure(config):
    if "--benchmark-disable" not in config.invocation_params.args:
        config.option.benchmark_disable = False
