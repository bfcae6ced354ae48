"""Run the tests of fastopt.torch with another version of torch, in a virtual environment of its own.

    python tests/on_torch.py 2.6.0          # the oldest that pyproject.toml admits; it downloads some 3 GB

The environment is made in a temporary folder and removed afterwards. The guards rest on torch's C functions and on
where a Python tensor has its at::Tensor (fastopt/torch/c_abi.py): run this before the oldest version that is admitted
changes, and on each new one.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent


def main() -> int:
    """Install the version and run the tests; return pytest's exit status."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("version", help="of torch, for example 2.6.0")
    parser.add_argument("--python", default=sys.executable, help="interpreter to make the environment of")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fastopt-torch-") as folder:
        if asked.python == sys.executable:
            venv.create(folder, with_pip=True)
        else:
            subprocess.run([asked.python, "-m", "venv", folder], check=True)
        python = str(Path(folder) / ("Scripts" if sys.platform == "win32" else "bin") / "python")
        wanted = [f"torch=={asked.version}", "accelerate", "lightning", "-e", f"{ROOT}[test]"]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
        tests = sorted(str(path) for path in (ROOT / "tests").glob("test_torch_*.py"))
        return subprocess.run(
            [python, "-m", "pytest", "-p", "no:cacheprovider", *tests], cwd=ROOT, check=False
        ).returncode


if __name__ == "__main__":
    raise SystemExit(main())
