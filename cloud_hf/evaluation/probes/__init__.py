"""Probes: measure failures of reward models on rows of any preference set."""

from .content_free_answers import EMPTY_AND_REFUSALS, TRIVIAL_ANSWERS
from .injection import FORGED_CRITIQUES, SPECIAL_TOKENS
from .length import LENGTH
from .paraphrase import PARAPHRASES, read_paraphrases
from .probe import Measure, Probe, ProbedRow, ProbeRow, ScoredVariant, Unit, Variant
from .run import BATCH, PROBES, ProbeResult, check_probes, draw_rows, run_probes
from .style import STYLE


__all__ = [
    "BATCH",
    "EMPTY_AND_REFUSALS",
    "FORGED_CRITIQUES",
    "LENGTH",
    "PARAPHRASES",
    "PROBES",
    "SPECIAL_TOKENS",
    "STYLE",
    "TRIVIAL_ANSWERS",
    "Measure",
    "Probe",
    "ProbeResult",
    "ProbeRow",
    "ProbedRow",
    "ScoredVariant",
    "Unit",
    "Variant",
    "check_probes",
    "draw_rows",
    "read_paraphrases",
    "run_probes",
]
