"""The report: what a run found, as plain data (`view`), then as one page that opens offline (`render`)."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

from typicality.report.render import write_report
from typicality.report.view import ReportInput, ReportView, build_view

__all__ = ["ReportInput", "ReportView", "build_view", "write_report"]


class _CallablePackage(ModuleType):
    """This package, which hides the public function of the same name as soon as anything has imported it."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Call the function `typicality.report`, see there."""
        return import_module("typicality.api").report(*arguments, **options)


sys.modules[__name__].__class__ = _CallablePackage
