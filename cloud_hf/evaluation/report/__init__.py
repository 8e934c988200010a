"""Reports: report.md and report.json, their tables, pictures and files."""

from .report import *  # noqa: F403
