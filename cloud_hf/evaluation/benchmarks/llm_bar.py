"""LLMBar: responses that follow an instruction versus responses that only look better (arXiv 2310.07641, princeton-nlp/LLMBar)."""

from collections.abc import Sequence
from pathlib import Path

from datasets import load_dataset

from ...data.rows import check_columns
from ..rows import BenchmarkRow, check_pairs, make_row, read_sources, split_rewards, text_of
from ..stats import BenchmarkScores, by_subset, collect_scores, share, weighted_mean


HUB_ID = "princeton-nlp/LLMBar"
# The Hub repository contains only a loading script, which `datasets` no longer runs. The script downloaded these files
FILES = "https://raw.githubusercontent.com/princeton-nlp/LLMBar/main/Dataset/LLMBar"

ADVERSARIAL = ("Neighbor", "GPTInst", "GPTOut", "Manual")
SUBSETS = ("Natural", *ADVERSARIAL)
# Subsets of the case study in section 4.6 of the paper, which are reported separately
CASE_STUDY = ("Constraint", "Negation", "Normal", "Base-9", "Base-10")

# Other names of these subsets: those in RewardBench, and the names of the splits on the Hub
_SPELLINGS = {
    **{f"llmbar-adver-{name}".lower(): name for name in ADVERSARIAL},
    **{f"adversarial_{name}".lower(): name for name in ADVERSARIAL},
    **{f"llmbar-case-{name}".lower().replace("base-", "base_"): name for name in CASE_STUDY},
    **{name.lower().replace("base-", "base_"): name for name in CASE_STUDY},
    **{name.lower(): name for name in (*SUBSETS, *CASE_STUDY)},
    "llmbar-natural": "Natural",
}


def load(names: Sequence[str] | None = None) -> list[BenchmarkRow]:
    """
    Load LLMBar, by default the official files of the five subsets.

    Other files either have the official `dataset.json` layout (`input`, `output_1`, `output_2`, `label`), in a folder named after
    the subset, or have the columns `prompt`, `chosen`, `rejected`, `subset` and optionally `id`.
    """
    if names is not None:
        return check_pairs([_read_row(*item) for item in read_sources(names, "test")])
    rows = []
    for name in SUBSETS:
        source = f"{FILES}/{name if name == 'Natural' else f'Adversarial/{name}'}/dataset.json"
        official = load_dataset("json", data_files=source, split="train").to_list()
        rows += [_read_row(source, index, row) for index, row in enumerate(official)]
    return check_pairs(rows)


def _read_row(source: str, index: int, row: dict) -> BenchmarkRow:
    if "output_1" in row:
        check_columns(list(row), ("input", "output_1", "output_2", "label"), f"LLMBar ({source})")
        if row["label"] not in (1, 2):
            raise ValueError(f"{source}, row {index}: `label` is {row['label']!r}; it must be 1 or 2.")
        better, worse = (row[f"output_{number}"] for number in (row["label"], 3 - row["label"]))
        return make_row(source, index, row, _subset(Path(source).parent.name), better, worse, row["input"])
    check_columns(list(row), ("prompt", "chosen", "rejected", "subset"), f"LLMBar ({source})")
    return make_row(source, index, row, _subset(text_of(source, index, row, "subset")), row["chosen"], row["rejected"])


def _subset(name: str) -> str:
    return _SPELLINGS.get(name.lower(), name)


def score(rows: Sequence[BenchmarkRow], rewards: Sequence[Sequence[float]]) -> BenchmarkScores:
    """
    Score LLMBar. A row counts as correct if the better response has a strictly higher reward.

    Returns an estimate for each of the five subsets, for `"Adversarial"` (the plain mean of four of them) and for `"Average"` (the
    mean of all five), as in table 2 of the paper. Subsets of the case study get an estimate only if they have rows.
    """
    split = split_rewards(rows, rewards)
    outcomes = by_subset(rows, [float(chosen > rejected) for [chosen], [rejected] in split])
    figures = {
        "Average": weighted_mean(outcomes, dict.fromkeys(SUBSETS, 1.0)),
        "Adversarial": weighted_mean(outcomes, dict.fromkeys(ADVERSARIAL, 1.0)),
        **{name: share(outcomes.get(name, [])) for name in SUBSETS},
        **{name: share(outcomes[name]) for name in CASE_STUDY if name in outcomes},
    }
    scores = {"benchmark": "LLMBar", "headline": "Average", "figures": figures}
    return collect_scores(rows, split, outcomes, SUBSETS, CASE_STUDY, **scores)
