"""
Add prompts to the authors' published training data.

The data was published without prompts, but each id points to a source row: `feedback-12` is row 12 (counting from 0) of UltraFeedback,
and any other id, such as `interact-12`, is row 12 of UltraInteract_pair. Because a row number says nothing about the row's content, the
sources must be the ones that the authors used. Their row counts are therefore checked, and the published responses must fit the prompts.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from datasets import Dataset, DatasetDict

from ...argument_help import check_bounds, documented
from ..dataset_folder import RECORD, DatasetFolder
from ..duplicates import words
from ..row_values import FEEDBACK_COLUMNS
from ..rows import check_columns, dataset_label, hash_of_rows, load_rows


PUBLISHED = "ankner/Llama3-8b-ultra-{}"
ULTRA_FEEDBACK = "openbmb/UltraFeedback"
ULTRA_INTERACT = "openbmb/UltraInteract_pair"
MODES = ("oracle", "self-gen")
MODEL_SIZES = ("8b", "70b")
SPLITS = ("train", "test")

# Row counts, rounded to three digits as on the Hub's pages
PUBLISHED_ROWS = {"train": "117k", "test": "6.13k"}
SOURCE_ROWS = {"feedback": "64k", "interact": "220k"}

_ID = re.compile(r"([^-]+)-(\d+)")
_EXAMPLES = 3
# Number of consecutive rows to compare with each other. More distant rows need not be compared, because a missing or moved row shifts the
# numbers of all later rows
_COMPARED = 100
_FEWEST_COMPARED = 3
# In ten preference datasets of 67 to 2,096 rows, the fit of 100 rows was between 0.87 and 1, and at most 0.22 after shuffling the prompts
_LEAST_FIT = 0.5


def published_name(mode: str, model_size: str | None) -> str:
    """
    Return the Hub id of a published dataset. Its critiques were written by a strong model (`"oracle"`), or by the authors' `"8b"` or
    `"70b"` model after stage 1 (`"self-gen"`). Raises `ValueError` if there is no such dataset.
    """
    if mode not in MODES:
        raise ValueError(f"`mode` is {mode!r}; use {' or '.join(MODES)}.")
    if mode == "oracle":
        if model_size is not None:
            raise ValueError(
                "`model_size` applies only to `mode` 'self-gen': oracle critiques are the same for both sizes."
            )
        return PUBLISHED.format(mode)
    if model_size not in MODEL_SIZES:
        raise ValueError(f"`model_size` is {model_size!r}; use {' or '.join(MODEL_SIZES)}.")
    return PUBLISHED.format(f"{mode}-{model_size}")


def check_number(rows: int, expected: str, name: str):
    """Raise `ValueError` unless the number of rows rounds to the expected number, for example `"6.13k"`."""
    thousands = float(expected.removesuffix("k"))
    half = 0.5 * 10 ** -len(expected.removesuffix("k").partition(".")[2])
    if not thousands - half <= rows / 1000 <= thousands + half:
        raise ValueError(
            f"{name} has {rows} rows instead of {expected}, so row numbers would select the wrong prompts. If you want to use "
            "another version, or only part of the data, set `check_counts` to False."
        )


@dataclass(frozen=True)
class PromptSources:
    """
    UltraFeedback, whose prompts are in the column `instruction`, and UltraInteract_pair, where a prompt is the first message in the column
    `trajectory`.
    """

    feedback: Dataset
    interact: Dataset

    def __post_init__(self):
        check_columns(self.feedback.column_names, ("instruction",), "The source of `feedback` prompts")
        check_columns(self.interact.column_names, ("trajectory",), "The source of `interact` prompts")

    def check_numbers(self):
        """Raise `ValueError` if the number of rows in a source differs from that of the authors' copy."""
        for source, rows in SOURCE_ROWS.items():
            check_number(len(getattr(self, source)), rows, f"The source of `{source}` prompts")

    def check_ids(self, splits: Mapping[str, Dataset]) -> dict[str, int]:
        """
        Check that the id of every published row refers to a source row, and count the rows from each source. `splits` maps the name of each
        split to its rows.

        Raises `ValueError` with counts and examples if some ids refer to no source row, or are repeated.
        """
        found: Counter = Counter()
        bad: dict[str, list[str]] = {}
        seen: set[str] = set()
        for split, rows in splits.items():
            for index, name in enumerate(rows["id"]):
                source, number = _read_id(name)
                problem = "are repeated" if name in seen else self._problem(source, number)
                seen.add(name)
                found[source] += 1
                if problem:
                    bad.setdefault(problem, []).append(f"{name!r} ({split} row {index})")
        if bad:
            total = sum(map(len, splits.values()))
            what = "; ".join(
                f"{len(names)} of {total} ids {problem}, such as {', '.join(names[:_EXAMPLES])}"
                for problem, names in bad.items()
            )
            raise ValueError(f"Some prompts cannot be found: {what}.")
        return {f"rows_from_{name}": found[name] for name in SOURCE_ROWS}

    def prompts(self, ids: list[str]) -> list[str]:
        """
        Return the prompts for the given ids, in the same order. The ids must have passed [`PromptSources.check_ids`].

        Raises `ValueError` with counts and examples if some of the source rows contain no prompt.
        """
        found = list(map(_read_id, ids))
        numbers = {name: [number for source, number in found if source == name] for name in SOURCE_ROWS}
        read = {source: self._read(source, rows) for source, rows in numbers.items()}
        prompts = [next(read[source]) for source, _ in found]
        if bad := [name for name, prompt in zip(ids, prompts, strict=True) if not isinstance(prompt, str)]:
            raise ValueError(
                f"{len(bad)} of {len(ids)} source rows contain no prompt (a null `instruction`, or a `trajectory` whose first message has "
                f"no text), such as rows {', '.join(map(_source_row, bad[:_EXAMPLES]))}. Use the sources as they were published."
            )
        return prompts

    def hashes(self) -> dict[str, str]:
        """Return hashes of the columns that contain the prompts."""
        return {
            "feedback_hash": hash_of_rows(self.feedback.select_columns("instruction")),
            "interact_hash": hash_of_rows(self.interact.select_columns("trajectory")),
        }

    def _read(self, source: str, numbers: list[int]) -> Iterator[Any]:
        if source == "feedback":
            yield from self.feedback.select(numbers)["instruction"]
        else:
            for trajectory in self.interact.select(numbers)["trajectory"]:
                yield (trajectory or [{}])[0].get("value")

    def _problem(self, source: str, number: int) -> str | None:
        """Return what is wrong with an id, or `None` if nothing is."""
        if not source:
            return "do not have the form feedback-0 or interact-0"
        size = len(getattr(self, source))
        return None if number < size else f"are beyond the {size} rows of the source of `{source}` prompts"


def _read_id(name: Any) -> tuple[str, int]:
    """Return the source and row number of an id; the source is empty if the id is malformed."""
    match = _ID.fullmatch(name) if isinstance(name, str) else None
    return ("feedback" if match[1] == "feedback" else "interact", int(match[2])) if match else ("", -1)


def _source_row(name: str) -> str:
    source, number = _read_id(name)
    return f"{number} of `{source}` (id {name!r})"


def check_match(splits: Mapping[str, Dataset]) -> int:
    """
    Check that the responses fit the prompts of their rows, and return the number of rows whose texts had enough words to be compared.

    Raises a `ValueError` that names the first range of source rows in which responses fit other rows' prompts almost as well as their own.
    """
    found = [
        (*_read_id(name), split, index) for split, rows in splits.items() for index, name in enumerate(rows["id"])
    ]
    texts = {split: rows.select_columns(["prompt", "chosen", "rejected"]) for split, rows in splits.items()}
    compared = 0
    for source in SOURCE_ROWS:
        places = sorted(place for place in found if place[0] == source)
        for start in range(0, len(places), _COMPARED):
            part = places[start : start + _COMPARED]
            rows = [texts[split][index] for _, _, split, index in part]
            prompts = [set(words(row["prompt"])) for row in rows]
            fit, number = match([set(words(f"{row['chosen']} {row['rejected']}")) for row in rows], prompts)
            if fit is not None and fit < _LEAST_FIT:
                raise ValueError(
                    f"The published responses do not fit the prompts of rows {part[0][1]} to {part[-1][1]} of the source of `{source}` "
                    f"prompts (fit {fit:.2f}, where 1 is perfect and 0 is chance): the source differs from the authors' copy in order or "
                    "content."
                )
            compared += number
    return compared


def match(responses: Sequence[set[str]], prompts: Sequence[set[str]]) -> tuple[float | None, int]:
    """
    Measure how well responses fit their prompts. For each pair of rows, check whether the responses share more words with their own prompts
    or with swapped prompts.

    Returns the fit and the number of rows compared. The fit is the share of pairs in which the responses' own prompts win, minus the share
    in which the swapped prompts win (from -1 to 1; ties are not counted). A row counts as compared if at least one of its pairs is not a
    tie. If fewer than half of the rows, or fewer than three, can be compared, returns `None` and 0.

    Examples:

    ```python
    >>> match([{"two", "cups"}, {"a", "ball"}, {"red"}], [{"cups"}, {"ball"}, {"red"}])
    (1.0, 3)
    ```
    """
    columns = {word: place for place, word in enumerate(sorted(set().union(*prompts)))}

    def counts(texts: Sequence[set[str]]) -> np.ndarray:
        table = np.zeros((len(texts), len(columns)), dtype=np.float32)
        for place, text in enumerate(texts):
            table[place, [columns[word] for word in text if word in columns]] = 1
        return table

    shared = counts(responses) @ counts(prompts).T
    own = np.diag(shared)
    gains = own[:, None] + own - shared - shared.T
    decided = int((gains != 0).any(axis=1).sum())
    if decided < max(_FEWEST_COMPARED, len(own) / 2):
        return None, 0
    return float(np.sign(gains).sum() / (gains != 0).sum()), decided


def add_prompts(rows: Dataset, sources: PromptSources) -> Dataset:
    """Add a column `prompt` to published rows whose ids have passed [`PromptSources.check_ids`]."""
    check_columns(rows.column_names, ("id", "chosen", "rejected", *FEEDBACK_COLUMNS), "A published dataset")
    prompts = sources.prompts(rows["id"])
    if "prompt" in rows.column_names:
        rows = rows.remove_columns("prompt")
    return rows.add_column("prompt", prompts)


@documented
@dataclass(kw_only=True)
class PublishedDataArguments:
    """
    Options for the published data and the sources of its prompts.

    Parameters:
        mode (`str`):
            Model that wrote the critiques: `"oracle"` (a strong model) or `"self-gen"` (the authors' models after stage 1).
        output_dir (`str`):
            Folder for the dataset, its card and `build.json`.
        model_size (`str`, *optional*):
            Size of the stage 1 model, `"8b"` or `"70b"`; only for `"self-gen"`.
        dataset_name (`str`, *optional*):
            Published data: Hub id, or a `save_to_disk` folder with both splits. Defaults to the authors' dataset on the Hub.
        dataset_test_name (`str`, *optional*):
            Published test split, needed if `dataset_name` is a file that contains only the training split.
        feedback_name (`str`, *optional*, defaults to `"openbmb/UltraFeedback"`):
            UltraFeedback: Hub id, file or folder.
        interact_name (`str`, *optional*, defaults to `"openbmb/UltraInteract_pair"`):
            UltraInteract_pair: Hub id, file or folder.
        check_counts (`bool`, *optional*, defaults to `True`):
            Reject data and sources whose row counts differ from the published ones.
        limit (`int`, *optional*):
            Write only the first rows of each split.
        push_to_hub (`str`, *optional*):
            Hub id to upload the dataset to.
    """

    mode: str
    output_dir: str
    model_size: str | None = None
    dataset_name: str | None = None
    dataset_test_name: str | None = None
    feedback_name: str = ULTRA_FEEDBACK
    interact_name: str = ULTRA_INTERACT
    check_counts: bool = True
    limit: int | None = None
    push_to_hub: str | None = None

    def __post_init__(self):
        published_name(self.mode, self.model_size)
        check_bounds(self, limit=1)
        if Path(self.output_dir).resolve() in {Path(name).resolve() for name in self.sources()}:
            raise ValueError(f"`output_dir` is one of the sources ({self.output_dir}); choose another folder.")

    def sources(self) -> list[str]:
        """Return the names of all datasets that the command reads."""
        names = [self.published, self.dataset_test_name, self.feedback_name, self.interact_name]
        return [name for name in names if name is not None]

    @property
    def published(self) -> str:
        """Name of the published data."""
        return self.dataset_name or published_name(self.mode, self.model_size)

    def load_splits(self) -> dict[str, Dataset]:
        """Load the published rows by split."""
        test = self.dataset_test_name
        return {
            "train": load_rows(self.published, "train"),
            "test": load_rows(test or self.published, "test", needs_split=not test),
        }


ARGUMENTS = (PublishedDataArguments,)


def main(args: PublishedDataArguments):
    splits = args.load_splits()
    sources = PromptSources(load_rows(args.feedback_name), load_rows(args.interact_name))
    if args.check_counts:
        for split in SPLITS:
            check_number(len(splits[split]), PUBLISHED_ROWS[split], f"The {split} split of the published data")
        sources.check_numbers()
    counts = {**{f"rows_{split}": len(rows) for split, rows in splits.items()}, **sources.check_ids(splits)}
    settings = {
        "builder": "official ultra llama",
        "dataset": dataset_label(args.published),
        "mode": args.mode,
        "model_size": args.model_size,
        "feedback": dataset_label(args.feedback_name),
        "interact": dataset_label(args.interact_name),
        "limit": args.limit,
        **{f"{split}_hash": hash_of_rows(rows) for split, rows in splits.items()},
        **sources.hashes(),
    }
    if args.limit is not None:
        splits = {split: rows.select(range(min(args.limit, len(rows)))) for split, rows in splits.items()}
    complete = DatasetDict({split: add_prompts(rows, sources) for split, rows in splits.items()})
    counts["rows_whose_prompts_were_compared"] = check_match(cast(dict[str, Dataset], complete))
    counts["empty_prompts"] = sum(not prompt.strip() for rows in complete.values() for prompt in rows["prompt"])
    folder = DatasetFolder(args.output_dir, "Published CLoud data with its prompts", settings, args.sources())
    with folder.locked():
        if not (folder.path / RECORD).exists():  # do not write a finished dataset again
            complete.save_to_disk(args.output_dir)
            folder.write_record(counts)
    written = ", ".join(f"{len(rows)} {split} rows" for split, rows in splits.items())
    print(
        f"Every prompt was found ({counts['rows_from_feedback']} in UltraFeedback, "
        f"{counts['rows_from_interact']} in UltraInteract_pair)."
    )
    if counts["empty_prompts"]:
        print(
            f"{counts['empty_prompts']} prompt(s) are empty in the sources; training rejects rows with an empty prompt."
        )
    if args.push_to_hub:
        folder.push(args.push_to_hub)
    stage, output = ("train-critique-sft", "critic-sft") if args.mode == "oracle" else ("train-cloud", "cloud-rm")
    print(
        f"Wrote {written} to {args.output_dir}. Next: cloud-hf {stage} --model_name_or_path MODEL --dataset_name {args.output_dir} "
        f"--output_dir {output}"
    )
