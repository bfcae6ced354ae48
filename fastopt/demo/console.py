"""Tables, source code and progress bars for the terminal; plain text if the output is a file."""

from __future__ import annotations

import os

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text


def open_console() -> Console:
    """Return a console for standard output; a file gets neither colours nor progress bars, and long lines."""
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 240
    return console


def progress_bars(console: Console) -> Progress:
    """Return progress bars that count epochs and disappear at the end."""
    columns = (TextColumn("{task.description:>9}"), BarColumn(), MofNCompleteColumn(), TextColumn("epochs"))
    return Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal)


def print_table(console: Console, headings: tuple[str, ...], rows: list[tuple[str, ...]], left: int) -> None:
    """Print a table whose first `left` columns are text and whose other columns are numbers."""
    table = Table(box=box.SIMPLE_HEAD, show_header=any(headings))
    for k, heading in enumerate(headings):
        table.add_column(heading, justify="left" if k < left else "right", style="bold" if k == 0 else "")
    for row in rows:
        # Text, because brackets in a string would be markup. ▼ marks cases that fastopt loses.
        table.add_row(*(Text(cell, style="red" if cell.startswith("▼") else "") for cell in row))
    console.print(table)


def print_code(console: Console, text: str, language: str) -> None:
    """Print source code, with colours on a terminal and unchanged into a file."""
    if console.is_terminal:
        console.print(Syntax(text, language, theme="ansi_dark", background_color="default"), soft_wrap=True)
    else:
        print(text, end="")
