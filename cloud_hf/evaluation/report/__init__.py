"""Reports: report.md and report.json, their tables, pictures and files."""

from ..formatting import Section, render, show_estimate
from ..set_results import Difference, Evaluation, compare, evaluation_of_pairs, headline_estimates
from .files import VERSION, write_report, write_results, write_scores
from .tables import best_of_n_section, headline_table, markdown


headline_figures, cell = headline_estimates, show_estimate  # their names in version 0.1

__all__ = [
    "VERSION",
    "Difference",
    "Evaluation",
    "Section",
    "best_of_n_section",
    "compare",
    "evaluation_of_pairs",
    "headline_estimates",
    "headline_figures",
    "headline_table",
    "markdown",
    "render",
    "write_report",
    "write_results",
    "write_scores",
]
