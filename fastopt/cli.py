"""The console script `fastopt`: it runs a command, and says in one line what to install where something is missing.

The commands need the extra `demo`; `fastopt --version` needs nothing but fastopt.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from io import TextIOWrapper

from fastopt.errors import FastoptError

_EXTRA = ("matplotlib", "rich", "sklearn", "threadpoolctl", "typer")


def main() -> None:
    """Run the command that the arguments name; an error on purpose is its message on stderr and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a character that its encoding lacks becomes a question mark
            stream.reconfigure(errors="replace")
    if sys.argv[1:] == ["--version"]:
        print(f"fastopt {version('fastopt')}")
        return
    try:
        from fastopt.demo.commands import app

        app()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        where = "in fastopt's checkout run pip install -e '.[demo]'"
        sys.exit(_stop(f"fastopt: this needs {error.name}, which is not installed: {where}"))
    except FastoptError as error:
        sys.exit(_stop(str(error)))
    except OSError as error:  # a file that cannot be written, a full disk
        sys.exit(_stop(f"fastopt: {error}"))


def _stop(message: str) -> int:
    print(message, file=sys.stderr)
    return 2
