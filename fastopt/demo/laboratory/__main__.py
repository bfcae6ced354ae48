"""Write the laboratory as one HTML file: `python -m fastopt.demo.laboratory OUT.html`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fastopt.demo.laboratory.page import build
from fastopt.errors import FastoptError

SOURCES = Path(__file__).resolve().parents[3] / "docs" / "laboratory"


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m fastopt.demo.laboratory", description=__doc__)
    parser.add_argument("out", type=Path, metavar="OUT", help="the file to write; folders above it are made")
    parser.add_argument(
        "--sources", type=Path, default=SOURCES, metavar="FOLDER", help="the page's sources  [default: docs/laboratory]"
    )
    given = parser.parse_args()
    try:
        page = build(given.sources)
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(page, encoding="utf-8")
    except (FastoptError, OSError) as error:
        sys.exit(str(error))
    print(f"{given.out}: {len(page.encode()) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
