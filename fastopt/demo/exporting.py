"""What `fastopt export` writes besides the source: the file, and what to do with it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from fastopt.errors import SettingError

COMPILE = {"c": "cc -O3 -march=native -fno-math-errno -c {}", "cuda": "nvcc -O3 -arch=native -c {}"}


def command_line(rule: str, storage: str, language: str, settings: list[str]) -> str:
    """Return the command that exports the same source."""
    words = ["fastopt", "export", rule, "--storage", storage, "--language", language]
    words += [word for text in settings for word in ("--set", text)]
    return shlex.join(words)


def write_source(text: str, path: Path, language: str) -> list[str]:
    """Write the file, and return lines that say what it has and how it is compiled."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        what = "the file cannot be written."
        raise SettingError(what, got=f"{path}: {error.strerror}", do="choose another --out") from None
    functions = re.findall(r"^(?:void|bool|cudaError_t) (\w+)\(", text, re.MULTILINE)
    return [
        f"{path} has {', '.join(functions)}.",
        f"Compile it with {COMPILE[language].format(shlex.quote(str(path)))}",
    ]
