"""`pytest bench` times; everywhere else pytest-benchmark is off (see addopts in pyproject.toml)."""


def pytest_configure(config):
    if "--benchmark-disable" not in config.invocation_params.args:
        config.option.benchmark_disable = False
