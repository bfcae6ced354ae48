"""Turn pytest-benchmark on for `pytest bench`; addopts in pyproject.toml turns it off for the tests."""


def pytest_configure(config):
    if "--benchmark-disable" not in config.invocation_params.args:
        config.option.benchmark_disable = False
