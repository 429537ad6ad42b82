"""The command line: thin shells over the public functions. The only place that prints and that exits."""

from .app import main

__all__ = ["main"]
