"""JavaScript as a target: prints a Program as a script that a browser or Node runs as it stands, with the same bits."""

from fastopt.kernels.javascript.printer import print_source

__all__ = ["print_source"]
