"""Run PyTorch's own optimizer tests on the classes of fastopt.torch.

    python tests/torch_suite.py PATH/TO/pytorch/test/test_optim.py [--flatten] [-k EXPR]

The file is the one of PyTorch's repository at the tag of the installed torch; it is not in torch's wheel and not here.
torch.testing's table `optim_db` says which classes and arguments its `TestOptimRenewed` goes through: here they are
fastopt's, and so is torch.optim.SGD wherever the file names it. Where a test compares torch's for-loop with its foreach
or fused implementation, the for-loop stays torch's and the other is fastopt's. Only the CPU's tests run.

`DIFFERENCES` lists the tests that cannot pass, with the error that each must end in; any other failure, and a listed
test that passes, makes the exit status 1. docs/torch-suite.md has the outcome.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import importlib.machinery
import importlib.util
import os
import re
import sys
import traceback
import types
import unittest
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ["PYTORCH_TESTING_DEVICE_ONLY_FOR"] = "cpu"  # read by torch.testing when it is imported

import torch  # pyright: ignore[reportMissingImports]
from torch.testing._internal import common_optimizers, common_utils  # pyright: ignore[reportMissingImports]

import fastopt.torch

NAMES = ("SGD", "RMSprop", "Adam", "AdamW", "Adagrad", "Adadelta", "Adamax", "NAdam", "RAdam")


class Difference(NamedTuple):
    """Tests that must fail: a pattern of their names, a pattern of the error, and the reason."""

    tests: str
    error: str
    reason: str


DIFFERENCES = (
    Difference("test_complex*", "LayoutError: .* is complex", "complex parameters"),
    Difference("test_rosenbrock_sparse_*", "LayoutError: .*the gradient of .* is sparse", "sparse gradients"),
    Difference("test_forloop_*contiguous_False_*", "LayoutError: .* does not fill one run of memory", "gaps in memory"),
    Difference("test_fused_error_on_params_on_meta_*", "LayoutError: .*neither in the CPU's memory", "meta parameters"),
)

# Arguments that are refused on purpose. A test goes through all arguments in turn and would stop at the first of them.
REFUSED_IMPLEMENTATION = "differentiable"
REFUSED_INPUT = "a param group cannot have duplicate parameters"  # torch warns
SKIPPED = "skipped by torch"


def flattened(own: Any) -> Any:
    """Return a class of the same name whose `flatten` is True unless told otherwise."""

    def start(self: Any, params: Any, *args: Any, flatten: bool = True, **options: Any) -> None:
        own.__init__(self, params, *args, flatten=flatten, **options)

    return type(own.__name__, (own,), {"__init__": start, "__module__": own.__module__})


def accepted(inputs: Any) -> Callable[..., list[Any]]:
    """Return a function like torch's of erroneous arguments, without those that raise another error here."""

    def without(*args: Any, **more: Any) -> list[Any]:
        return [x for x in inputs(*args, **more) if x.optimizer_error_input.desc != REFUSED_INPUT]

    return without


def replace_classes(*, flatten: bool) -> dict[str, Any]:
    """Put fastopt's classes into `optim_db` and torch.optim, take out the others, and return torch's own by name."""
    theirs = {name: getattr(torch.optim, name) for name in NAMES}
    ours = {name: getattr(fastopt.torch, name) for name in NAMES}
    if flatten:
        ours = {name: flattened(own) for name, own in ours.items()}
    infos = common_optimizers.optim_db
    infos[:] = [info for info in infos if info.name in ours]
    for info in infos:
        info.optim_cls = ours[info.name]
        info.supported_impls = tuple(impl for impl in info.supported_impls if impl != REFUSED_IMPLEMENTATION)
        info.optim_error_inputs_func = accepted(info.optim_error_inputs_func)
    for name, own in ours.items():
        setattr(torch.optim, name, own)
    return theirs


def compare_with_torch(tests: Any, theirs: dict[str, Any]) -> None:
    """Make the tests that compare two implementations compare torch's for-loop with fastopt's step."""
    compare = tests._test_derived_optimizers

    def compare_classes(self: Any, device: Any, dtype: Any, info: Any, flag: str, *args: Any, **more: Any) -> None:
        def make(params: Any, **options: Any) -> Any:
            return (info.optim_cls if options[flag] else theirs[info.name])(params, **options)

        both = copy.copy(info)
        both.optim_cls = make
        compare(self, device, dtype, both, flag, *args, **more)

    tests._test_derived_optimizers = compare_classes


class _OtherTests(types.ModuleType):
    """A module of PyTorch's test/optim, whose classes the test file imports: they do not test optimizers."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (common_utils.TestCase,), {})


def load(path: Path) -> types.ModuleType:
    """Import the test file, without what it imports beside it."""
    for name in ("optim", "optim.test_lrscheduler", "optim.test_optim", "optim.test_swa_utils"):
        sys.modules[name] = _OtherTests(name)
    loader = importlib.machinery.SourceFileLoader("test_optim", str(path))
    spec = importlib.machinery.ModuleSpec("test_optim", loader, origin=str(path))
    module = sys.modules["test_optim"] = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


class Outcome(unittest.TestResult):
    """Sorts tests by name and outcome into a table, and explains those that did not end as they must."""

    def __init__(self) -> None:
        super().__init__()
        self.table: dict[str, Counter[str]] = defaultdict(Counter)
        self.wrong: list[str] = []

    def _count(self, test: Any, column: str) -> None:
        found = re.search(rf"_({'|'.join(NAMES)})_", test._testMethodName)
        self.table[found[1] if found else "of no one optimizer"][column] += 1

    def _expected(self, test: Any) -> Difference | None:
        return next((d for d in DIFFERENCES if fnmatch.fnmatchcase(test._testMethodName, d.tests)), None)

    def addSuccess(self, test: Any) -> None:
        if (expected := self._expected(test)) is not None:
            self.wrong.append(f"{test._testMethodName} passes; it should not: {expected.reason}")
        self._count(test, "passed")

    def addSkip(self, test: Any, reason: str) -> None:
        self._count(test, SKIPPED)

    def addFailure(self, test: Any, err: Any) -> None:
        expected, text = self._expected(test), "".join(traceback.format_exception(*err))
        if expected is None or not re.search(expected.error, text):
            self.wrong.append(f"{test._testMethodName}\n{text}")
        self._count(test, expected.reason if expected else "FAILED")

    addError = addFailure  # noqa: N815 — unittest's name

    def print(self) -> None:
        """Print the wrong ones and the table, in Markdown."""
        print(*self.wrong, sep="\n")
        named = ["passed", *[d.reason for d in DIFFERENCES], SKIPPED, "FAILED"]
        columns = [c for c in named if any(row[c] for row in self.table.values())]
        rows = {**self.table, "all": sum(self.table.values(), Counter())}
        lines = [["", *columns], ["---", *["---:"] * len(columns)]]
        lines += [[name, *[str(rows[name][c] or "") for c in columns]] for name in rows]
        print(*["| " + " | ".join(line) + " |" for line in lines], sep="\n")


def main() -> int:
    """Run the tests and print a table; return 1 if one ended in another way than it must."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("path", type=Path, help="PyTorch's test/test_optim.py")
    parser.add_argument("--flatten", action="store_true", help="with flatten=True")
    parser.add_argument("-k", metavar="EXPR", default="", help="only tests whose name contains this")
    asked = parser.parse_args()
    theirs = replace_classes(flatten=asked.flatten)
    tests = load(asked.path).TestOptimRenewedCPU
    compare_with_torch(tests, theirs)
    names = [name for name in unittest.defaultTestLoader.getTestCaseNames(tests) if asked.k in name]
    outcome = Outcome()
    unittest.TestSuite(map(tests, names)).run(outcome)
    outcome.print()
    return 1 if outcome.wrong or not names else 0


if __name__ == "__main__":
    raise SystemExit(main())
