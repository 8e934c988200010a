"""Collect prompts from datasets, removing duplicates and prompts that overlap with evaluation sets."""

import asyncio
import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
from datasets import Dataset, Features, List, Value
from tqdm import tqdm

from ...argument_help import check_bounds, documented
from ...prompts import read_prompt
from ..bad_rows import kind_of
from ..build_run import check_not_empty
from ..column_forms import read_column
from ..dataset_folder import DatasetFolder
from ..duplicates import Duplicate, EvaluationNGrams, find_exact_duplicates, find_near_duplicates
from ..rows import dataset_label, load_rows, short_names
from .prompt_sources import (
    Prompt,
    PromptReject,
    PromptSource,
    canonical,
    check_prompts,
    check_trajectories,
    read_sources,
    turns,
    user_text,
    without_last_answer,
)
from .prompt_sources import plain_prompt as plain_prompt  # kept for code that imports it from here, as in version 0.1
from .prompt_sources import prompt_id as prompt_id


FEEDBACK, INTERACT = "ultrafeedback", "ultrainteract"


@documented
@dataclass(kw_only=True)
class PromptArguments:
    """
    Sources of the prompts and rules for rejecting them.

    Parameters:
        output_dir (`str`):
            Folder for the dataset, its card, `rejects.jsonl` and `build.json`.
        sources (`list[str]`, *optional*):
            `ultrafeedback`, `ultrainteract` or both. From UltraInteract, only single-turn trajectories are used. With both sources,
            UltraInteract is sampled down to the number of UltraFeedback prompts that remain after all filters.
        feedback_name (`str`, *optional*, defaults to `"openbmb/UltraFeedback"`):
            UltraFeedback: Hub id, JSONL or Parquet file, or `save_to_disk` folder.
        interact_name (`str`, *optional*, defaults to `"openbmb/UltraInteract_pair"`):
            UltraInteract_pair: Hub id, JSONL or Parquet file, or `save_to_disk` folder.
        dataset_name (`list[str]`, *optional*):
            Other datasets with a column of prompts (strings or lists of chat messages): Hub ids, files or folders.
        source_name (`list[str]`, *optional*):
            Names of the datasets in `dataset_name`, one per dataset. They are written to the column `source`, and ids are derived from
            them. By default, a dataset's name is its Hub id, or the name of its file or folder without path and extension.
        dataset_config (`str`, *optional*):
            Configuration of the Hub datasets in `dataset_name`.
        dataset_split (`str`, *optional*, defaults to `"train"`):
            Split to read.
        prompt_column (`str`, *optional*, defaults to `"prompt"`):
            Column of the prompts in `dataset_name`.
        drop_last_answer (`bool`, *optional*, defaults to `False`):
            For a chat that ends with an assistant turn, use the turns before that turn as the prompt.
        near_duplicate_threshold (`float`, *optional*, defaults to `0.8`):
            Jaccard similarity of word 5-grams at or above which a prompt counts as a duplicate of an earlier prompt. With a threshold
            above 1, only exact duplicates count.
        decontaminate_against (`list[str]`, *optional*):
            Evaluation sets: Hub ids, files or folders. Prompts that overlap with any of their prompts are rejected.
        decontaminate_config (`str`, *optional*):
            Configuration of the evaluation sets, if they are on the Hub.
        decontaminate_split (`str`, *optional*, defaults to `"test"`):
            Split of the evaluation sets.
        decontaminate_column (`str`, *optional*, defaults to `"prompt"`):
            Column of prompts in the evaluation sets. A chat's last answer is ignored, because only the user's turns are compared.
        ngram (`int`, *optional*, defaults to `13`):
            Number of consecutive shared words that count as an overlap. A prompt with fewer words overlaps only with a prompt that consists
            of exactly the same words in the same order.
        limit (`int`, *optional*):
            Read only the first rows of each dataset.
        seed (`int`, *optional*, defaults to `0`):
            Seed for sampling UltraInteract's prompts.
        push_to_hub (`str`, *optional*):
            Hub id to upload the dataset to.
    """

    output_dir: str
    sources: list[str] | None = None
    feedback_name: str = "openbmb/UltraFeedback"
    interact_name: str = "openbmb/UltraInteract_pair"
    dataset_name: list[str] | None = None
    source_name: list[str] | None = None
    dataset_config: str | None = None
    dataset_split: str = "train"
    prompt_column: str = "prompt"
    drop_last_answer: bool = False
    near_duplicate_threshold: float = 0.8
    decontaminate_against: list[str] | None = None
    decontaminate_config: str | None = None
    decontaminate_split: str = "test"
    decontaminate_column: str = "prompt"
    ngram: int = 13
    limit: int | None = None
    seed: int = 0
    push_to_hub: str | None = None

    def __post_init__(self):
        if unknown := sorted(set(self.sources or []) - {FEEDBACK, INTERACT}):
            raise ValueError(f"`sources` names {', '.join(unknown)}; use {FEEDBACK}, {INTERACT} or both.")
        if not self.sources and not self.dataset_name:
            raise ValueError(f"Nothing to read: set `sources` ({FEEDBACK}, {INTERACT}) or `dataset_name`.")
        given = len(self.dataset_name or [])
        if self.source_name is not None and len(self.source_name) != given:
            raise ValueError(f"`source_name` has {len(self.source_name)} name(s) for {given} dataset(s).")
        if self.near_duplicate_threshold <= 0:
            raise ValueError(f"`near_duplicate_threshold` is {self.near_duplicate_threshold}; it must be above 0.")
        check_bounds(self, ngram=1, limit=1)
        labels = [label for label, *_ in self.places()]
        if repeated := [label for label, count in Counter(labels).items() if count > 1]:
            raise ValueError(
                f"Two sources have the name {repeated[0]!r}; give each dataset a name with `source_name`."
            )
        named = (self.dataset_name or []) + (self.decontaminate_against or [])
        read = [*named, self.feedback_name, self.interact_name]
        if os.path.realpath(self.output_dir) in map(os.path.realpath, read):
            raise ValueError(f"`output_dir` is one of the datasets ({self.output_dir}); choose another folder.")

    def places(self) -> list[tuple[str, str, str | None, str, bool]]:
        """Return the name, dataset, configuration and column of each source in order, and whether the column contains trajectories."""
        labels = self.source_name or [source_label(name) for name in self.dataset_name or []]
        places = []
        if FEEDBACK in (self.sources or []):
            places.append((FEEDBACK, self.feedback_name, None, "instruction", False))
        if INTERACT in (self.sources or []):
            places.append((INTERACT, self.interact_name, None, "trajectory", True))
        for label, name in zip(labels, self.dataset_name or [], strict=True):
            places.append((label, name, self.dataset_config, self.prompt_column, False))
        return places


ARGUMENTS = (PromptArguments,)


def main(args: PromptArguments):
    sources = open_sources(args)
    evaluation, sets = open_evaluation_sets(args)
    folder = DatasetFolder(
        args.output_dir, "Prompts", settings_of(args, sources, sets), [source.dataset for source in sources]
    )
    with folder.locked():
        counts = build(args, sources, evaluation, list(sets), folder)
    check_not_empty(counts, folder)
    if args.push_to_hub:
        folder.push(args.push_to_hub)
    output = args.output_dir
    print(
        f"Wrote {counts['rows']} prompts to {output}. Next: cloud-hf build-preferences --gen_base_url WRITER --judge_base_url JUDGE "
        f"--dataset_name {output} --output_dir preferences"
    )


def build(
    args: PromptArguments,
    sources: list[PromptSource],
    evaluation: EvaluationNGrams,
    set_names: list[str],
    folder: DatasetFolder,
) -> dict[str, Any]:
    """Read the prompts, leave out the rejected ones, write the dataset, and return the counts."""
    rejects: list[PromptReject] = []
    prompts = read_sources(sources, rejects)
    exact = find_exact_duplicates(canonical(prompt.prompt) for prompt in prompts)
    prompts = remove_duplicates(prompts, exact, "exact duplicate", rejects)
    # Finding near-duplicates is expensive, so remove the exact ones first
    if args.near_duplicate_threshold <= 1:
        prompts = remove_near_duplicates(prompts, rejects, args.near_duplicate_threshold)
    prompts = remove_contaminated(prompts, rejects, evaluation)
    # Sampling comes last, so that both sources contribute the same number of prompts to the dataset
    if {FEEDBACK, INTERACT} <= set(args.sources or []):
        prompts = draw_equally(prompts, rejects, args.seed)

    outcomes = count_outcomes(sources, prompts, rejects)
    overlaps = count_overlaps(rejects, set_names)
    print_counts(outcomes, overlaps, rejects)
    counts = {"rows_read": sum(len(source.rows) for source in sources), "sources": outcomes, "overlaps": overlaps}
    order = [source.name for source in sources]
    rejects.sort(key=lambda reject: (order.index(reject.source), reject.index))
    chats = any(not isinstance(prompt.prompt, str) for prompt in prompts)
    counts = asyncio.run(folder.write(results(prompts, rejects, chats), features_of(chats), counts))
    folder.write_record(counts)
    return counts


def settings_of(args: PromptArguments, sources: list[PromptSource], sets: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return all settings that affect the dataset; `sets` describes the evaluation sets."""
    # The destinations do not affect the dataset, and the sources are already described by `read`
    destinations = {"output_dir", "push_to_hub"}
    described = {"feedback_name", "interact_name", "dataset_name", "source_name", "sources"}
    read = {
        source.name: {
            "dataset": dataset_label(source.dataset),
            "column": source.column,
            "rows": len(source.rows),
            "hash": hash_of(source.rows, source.column),
        }
        for source in sources
    }
    rest = {name: value for name, value in asdict(args).items() if name not in destinations | described}
    return {"builder": "prompts", "sources": read, **rest, "decontaminate_against": sets}


def hash_of(rows: Dataset, column: str) -> str:
    """Hash the bytes of a column, which may be invalid UTF-8."""
    digest = hashlib.sha256()
    for table in rows.select_columns([column]).with_format("arrow").iter(batch_size=1000):
        for batch in cast(pa.Table, table).combine_chunks().to_batches():
            digest.update(batch.serialize())
    return digest.hexdigest()[:32]


# ------------------------------------------------------------------------------------------------------------- reading


def source_label(name: str) -> str:
    """Return a Hub id unchanged, or the bare name of a file or folder (no path, no extension), because ids must not depend on paths."""
    path = Path(name)
    return re.sub(r"(\.jsonl?|\.parquet)?(\.gz)?$", "", path.resolve().name) if path.exists() else name


def open_sources(args: PromptArguments) -> list[PromptSource]:
    """Open all sources in order, and check their columns."""
    sources = []
    for label, name, config, column, trajectories in args.places():
        rows = load_rows(name, args.dataset_split, config)
        option = "" if label in (FEEDBACK, INTERACT) else " (`--prompt_column`)"
        check = check_trajectories if trajectories else check_prompts
        check(rows, column, f"Reading {name} as {label}{option}")
        rows = rows.select(range(min(args.limit or len(rows), len(rows))))
        sources.append(PromptSource(label, rows, column, trajectories, args.drop_last_answer, name))
    return sources


def open_evaluation_sets(args: PromptArguments) -> tuple[EvaluationNGrams, dict[str, dict[str, Any]]]:
    """Collect the n-grams of all evaluation sets, and map each set's name (without folders) to its row count and a hash of its prompts."""
    evaluation, described = EvaluationNGrams(args.ngram), {}
    names = args.decontaminate_against or []
    short = short_names([name for name in names if Path(name).exists()])
    for name in names:
        rows = load_rows(name, args.decontaminate_split, args.decontaminate_config)
        column = args.decontaminate_column
        check_prompts(rows, column, f"Decontamination (`--decontaminate_column`) against {name}")
        label = short.get(name, name)
        described[label] = {"rows": len(rows), "hash": hash_of(rows, column)}
        for index in range(len(rows)):
            try:
                value = rows[index][column]
                is_empty = isinstance(value, str) and not value.strip()
                prompt = value if is_empty else without_last_answer(read_column(value, "prompt")[1])
                messages = read_prompt(prompt, allow_empty=True).messages
            except ValueError as error:
                raise ValueError(f"{name}, row {index}, column {column!r}: {error}") from error
            evaluation.add(label, [user_text(messages)])
    return evaluation, described


# ----------------------------------------------------------------------------------------------------------- filters


def remove_near_duplicates(prompts: list[Prompt], rejects: list[PromptReject], threshold: float) -> list[Prompt]:
    """
    Remove near-duplicates among prompts with the same system prompt, comparing only the other turns. System prompts are often long and
    shared, so including them would make different prompts look similar.
    """
    texts = ["\n".join(text for role, text in turns(prompt.prompt) if role != "system") for prompt in prompts]
    systems = ["\n".join(text for role, text in turns(prompt.prompt) if role == "system") for prompt in prompts]
    return remove_duplicates(prompts, find_near_duplicates(texts, threshold, systems), "near-duplicate", rejects)


def remove_duplicates(
    prompts: list[Prompt], duplicates: dict[int, Duplicate], reason: str, rejects: list[PromptReject]
) -> list[Prompt]:
    for index, duplicate in duplicates.items():
        of = prompts[duplicate.of]
        similarity = round(duplicate.similarity, 4)
        rejects.append(
            PromptReject.of(prompts[index], reason, duplicate_of=of.id, its_source=of.source, similarity=similarity)
        )
    return [prompt for index, prompt in enumerate(prompts) if index not in duplicates]


def remove_contaminated(
    prompts: list[Prompt], rejects: list[PromptReject], evaluation: EvaluationNGrams
) -> list[Prompt]:
    kept = []
    for prompt in tqdm(prompts, desc="Decontaminating", disable=None):
        if ngrams := evaluation.find(user_text(read_prompt(prompt.prompt).messages)):
            rejects.append(PromptReject.of(prompt, "overlaps with evaluation", ngrams=ngrams))
        else:
            kept.append(prompt)
    return kept


def draw(prompts: list[Prompt], number: int, seed: int) -> list[Prompt]:
    """
    Sample `number` prompts and keep their order. Return all prompts if there are fewer than `number`. The sample depends on the ids and
    the seed, not on positions.
    """

    def rank(prompt: Prompt) -> bytes:
        return hashlib.sha256(f"{seed}:{prompt.id}".encode()).digest()

    drawn = {prompt.id for prompt in sorted(prompts, key=rank)[:number]}
    return [prompt for prompt in prompts if prompt.id in drawn]


def draw_equally(prompts: list[Prompt], rejects: list[PromptReject], seed: int) -> list[Prompt]:
    """Sample as many UltraInteract prompts as there are UltraFeedback prompts."""
    number = sum(prompt.source == FEEDBACK for prompt in prompts)
    pool = [prompt for prompt in prompts if prompt.source == INTERACT]
    undrawn = {prompt.id for prompt in pool} - {prompt.id for prompt in draw(pool, number, seed)}
    rejects += [PromptReject.of(prompt, "not drawn") for prompt in pool if prompt.id in undrawn]
    return [prompt for prompt in prompts if prompt.id not in undrawn]


# -------------------------------------------------------------------------------------------------- counts and output


def count_outcomes(
    sources: list[PromptSource], kept: list[Prompt], rejects: list[PromptReject]
) -> dict[str, dict[str, int]]:
    """Count, for each source, the rows that were read, those rejected for each reason, and those kept."""
    rejected = Counter((reject.source, reject.reason) for reject in rejects)
    reasons = sorted({reason for _, reason in rejected})
    return {
        source.name: {
            "read": len(source.rows),
            **{reason: rejected[source.name, reason] for reason in reasons},
            "kept": sum(prompt.source == source.name for prompt in kept),
        }
        for source in sources
    }


def count_overlaps(rejects: list[PromptReject], names: list[str]) -> dict[str, dict[str, Any]]:
    """Count the prompts that overlap with each evaluation set, and determine the most common n-gram that they share with the set."""
    found = [reject.details["ngrams"] for reject in rejects if "ngrams" in reject.details]
    overlaps = {}
    for name in names:
        ngrams = Counter(shared[name] for shared in found if name in shared)
        overlaps[name] = {"prompts": ngrams.total(), "commonest": dict(ngrams.most_common(1))}
    return overlaps


def print_counts(
    outcomes: dict[str, dict[str, int]], overlaps: dict[str, dict[str, Any]], rejects: list[PromptReject]
):
    """
    Print the counts, the prompt with the most near-duplicates, and the most frequent shared n-gram for each evaluation set. The prompt and
    the n-grams show whether prompts were rejected because of a task's fixed wording rather than their content.
    """
    for name, counts in outcomes.items():
        print(f"{name}: {', '.join(f'{number} {outcome}' for outcome, number in counts.items())}")
    for line in explain_failures(rejects):
        print(line)
    originals = Counter(reject.details["duplicate_of"] for reject in rejects if reject.reason == "near-duplicate")
    for name, number in originals.most_common(1):
        print(f"The prompt with the most near-duplicates is {name}, with {number}.")
    for name, overlap in overlaps.items():
        shown = "".join(f", {number} of them in: {ngram}" for ngram, number in overlap["commonest"].items())
        print(f"{overlap['prompts']} prompt(s) overlap with {name}{shown}")


def explain_failures(rejects: list[PromptReject]) -> list[str]:
    """Return a line for each of the three most common errors in unusable rows, naming the first row that has the error."""
    kinds: dict[str, list[PromptReject]] = defaultdict(list)
    for reject in rejects:
        if "error" in reject.details:
            kinds[kind_of(reject.details["error"])].append(reject)
    lines = []
    for failed in sorted(kinds.values(), key=len, reverse=True)[:3]:
        error = failed[0].details["error"]
        hint = (
            " With `--drop_last_answer`, the turns before the last one become the prompt."
            if "ends on a 'assistant'" in error
            else ""
        )
        lines.append(
            f"{len(failed)} row(s) not usable, such as row {failed[0].index} of {failed[0].source}: {error}{hint}"
        )
    return lines


def features_of(chats: bool) -> Features:
    """Return the columns of the dataset. Prompts are strings, unless at least one is a chat; then all are chats."""
    text = Value("string")
    return Features(id=text, prompt=List({"role": text, "content": text}) if chats else text, source=text)


async def results(
    prompts: list[Prompt], rejects: list[PromptReject], chats: bool
) -> AsyncIterator[dict[str, Any] | PromptReject]:
    for prompt in prompts:
        messages = [{"role": role, "content": text} for role, text in turns(prompt.prompt)]
        yield {"id": prompt.id, "prompt": messages if chats else prompt.prompt, "source": prompt.source}
    for reject in rejects:
        yield reject
