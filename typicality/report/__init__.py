"""The report: what a run found, as plain data (`view`), then as one page that opens offline (`render`)."""

from typicality.report.render import write_report
from typicality.report.view import ReportInput, ReportView, build_view

__all__ = ["ReportInput", "ReportView", "build_view", "write_report"]
