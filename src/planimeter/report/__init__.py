"""Reports of a study: figures, tables, and one self-contained HTML file."""

from planimeter.report.build import Report, build_report

__all__ = ["Report", "build_report"]
