"""Convert a public preference set to pairs in the format that training expects."""

import asyncio
import json
import shlex
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass
from itertools import combinations, groupby
from typing import Any

from datasets import Dataset, Features, Json, List, Value
from tqdm import tqdm

from ..argument_help import documented
from ..data.bad_rows import BadRows
from ..data.build_run import check_not_empty
from ..data.builders.arguments import SourceArguments
from ..data.dataset_folder import DatasetFolder, Reject
from ..data.preference_rows import SIDES, iterate_rows, read_preference, read_preferences
from ..data.public_layouts import LAYOUTS, Layout, Rated, find_layout
from ..data.rows import dataset_label


PAIRS = ("best_worst", "all")

# The rows of one prompt, with their positions in the dataset
Group = list[tuple[int, dict[str, Any]]]


@documented
@dataclass(kw_only=True)
class PrepareArguments(SourceArguments):
    """
    The public set, and which pairs to build from it.

    Parameters:
        layout (`str`, *optional*, defaults to `"auto"`):
            Layout of the rows. `auto` recognises the layout by the columns; `docs/data.md` lists all layouts.
        pairs (`str`, *optional*, defaults to `"best_worst"`):
            Pairs to build from a prompt with more than two rated responses: `best_worst` or `all`.
        margins (`bool`, *optional*, defaults to `False`):
            Write the column `margin`, the difference between the ratings, which training subtracts from the difference between the rewards.
    """

    layout: str = "auto"
    pairs: str = "best_worst"
    margins: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.layout not in ("auto", *LAYOUTS):
            raise ValueError(f"`layout` is {self.layout!r}; it must be one of auto, {', '.join(LAYOUTS)}.")
        if self.pairs not in PAIRS:
            raise ValueError(f"`pairs` is {self.pairs!r}; use {' or '.join(PAIRS)}.")


ARGUMENTS = (PrepareArguments,)


def main(args: PrepareArguments):
    rows = args.load_source()
    _, first = next(iterate_rows(rows))
    source = args.dataset_name, args.dataset_split, args.dataset_config
    name = find_layout(args.layout, rows.column_names, first, source)
    layout = LAYOUTS[name]
    if args.margins and not layout.margin:
        rated = ", ".join(each for each, other in LAYOUTS.items() if other.margin)
        raise ValueError(
            f"`margins` needs ratings, which `layout` {name} does not have. These layouts have them: {rated}."
        )
    print(f"{args.dataset_name}: reading {len(rows)} rows as {layout.title} (`--layout {name}`).")
    preparation = Preparation(rows, layout, args)
    title = f"Preference pairs from {layout.title}"
    folder = DatasetFolder(args.output_dir, title, settings_of(args, name), [args.dataset_name])
    with folder.locked():
        counts = asyncio.run(folder.write(preparation.results(), preparation.features(), preparation.counts))
        folder.write_record(counts)
    check_not_empty(counts, folder)
    left_out = [f"{number} x {reason.removeprefix('dropped: ')}" for reason, number in counts["reasons"].items()]
    left_out += [f"{counts['bad_rows']} x bad row"] if counts["bad_rows"] else []
    print(f"Left out: {', '.join(left_out) or 'nothing'}.")
    if args.push_to_hub:
        folder.push(args.push_to_hub)
    print(
        f"{counts['rows']} pairs in {args.output_dir}. Next: cloud-hf train-classic --model_name_or_path MODEL "
        f"--dataset_name {shlex.quote(args.output_dir)} --output_dir OUTPUT"
    )


def settings_of(args: PrepareArguments, layout: str) -> dict[str, Any]:
    """Return all settings that affect the dataset."""
    settings = {
        "builder": "prepare",
        **asdict(args),
        "dataset_name": dataset_label(args.dataset_name),
        "layout": layout,
    }
    return {name: value for name, value in settings.items() if name not in ("output_dir", "push_to_hub")}


class Preparation:
    """
    The pairs of a dataset. Reads the rows once to find bad rows and determine the column types, and again in [`Preparation.results`].

    Raises `ValueError` if rows are bad and `bad_rows` is "error".
    """

    def __init__(self, rows: Dataset, layout: Layout, args: PrepareArguments):
        self.layout, self.all_pairs, self.margins = layout, args.pairs == "all", args.margins
        ids = list(map(str, rows["id"])) if "id" in rows.column_names else []
        self.has_ids = bool(ids) and len({*ids}) == len(ids)
        self.repeated_ids = bool(ids) and not self.has_ids and not layout.group_by
        ratings = ("chosen_rating", "rejected_rating") if layout.margin else ()
        margin = ("margin",) if self.margins else ()
        replaced = {"id", "prompt", *SIDES, *layout.replaced, *ratings, *margin}
        self.kept = [name for name in rows.column_names if name not in replaced]
        self.text_prompts = self.text_responses = True
        self.has_tools = False
        # Keep the bad rows in place: without them, groups with the same prompt could become neighbours and merge
        self.rows, self.bad = self._check(rows, args.dataset_name, args.bad_rows)
        self.counts = {"rows_read": len(rows), "bad_rows": len(rows) - len(self.rows) + len(self.bad)}

    def _check(self, rows: Dataset, name: str, bad_rows: str) -> tuple[Dataset, set[int]]:
        """Return the rows and the positions of the bad ones. Raises `ValueError` if there are any and `bad_rows` is "error"."""
        if self.layout.direct:
            rows = read_preferences(rows, name, bad_rows=bad_rows)
        bad = BadRows(name, bad_rows)
        for group in self._groups(rows, "Checking"):
            try:
                for pair in self._pairs(group):
                    if not isinstance(pair, Reject):
                        json.dumps(pair, ensure_ascii=False, default=str).encode()
                        self.has_tools |= "tools" in pair
                        self.text_prompts &= isinstance(pair["prompt"], str)
                        self.text_responses &= all(isinstance(pair[side], str) for side in SIDES)
            except ValueError as error:
                surrogate = isinstance(error, UnicodeEncodeError)
                problem = "it contains a lone surrogate, which is not valid text." if surrogate else str(error)
                for index, row in group:
                    bad.add(index, row, problem)
        return rows, set(bad.settle(len(rows)))

    def _groups(self, rows: Dataset, title: str) -> Iterator[Group]:
        column = self.layout.group_by
        found = tqdm(iterate_rows(rows), desc=title, total=len(rows), unit=" rows", disable=None)
        for _, group in groupby(found, lambda item: item[1].get(column) if column else item[0]):
            yield list(group)

    def _pairs(self, group: Group) -> Iterator[dict[str, Any] | Reject]:
        """Yield the pairs and the rejects of one prompt. The pairs have our column names."""
        index, row = group[0]
        name = str(row["id"]) if self.has_ids else str(index)
        rated = self.layout.read([row for _, row in group] if self.layout.group_by else row)
        known = [place for place, rating in enumerate(rated.ratings) if rating is not None]
        for place in sorted({*range(len(rated.ratings))} - {*known}):
            yield Reject(index, f"{name}/{place}", "dropped", "response without a rating")
        if len(known) < 2:
            yield Reject(index, name, "dropped", "prompt with fewer than two rated responses")
            return
        known.sort(key=lambda place: -(rated.ratings[place] or 0))
        several = self.all_pairs and len(rated.ratings) > 2
        for better, worse in combinations(known, 2) if several else [(known[0], known[-1])]:
            pair_name = f"{name}/{better}-{worse}" if several else name
            pair = self._pair(row, rated, better, worse)
            yield Reject(index, pair_name, "dropped", pair) if isinstance(pair, str) else {"id": pair_name, **pair}

    def _pair(self, row: dict[str, Any], rated: Rated, better: int, worse: int) -> dict[str, Any] | str:
        """Return a pair, or the reason for leaving it out."""
        chosen_rating, rejected_rating = ratings = [rated.ratings[place] or 0.0 for place in (better, worse)]
        if chosen_rating == rejected_rating:
            return rated.tie
        sides = {"chosen": rated.responses[better], "rejected": rated.responses[worse]}
        kept = {name: row[name] for name in self.kept} | ({"source_id": row["id"]} if self.repeated_ids else {})
        _, prompt, chosen, rejected = read_preference({**kept, **rated.given, **sides})
        if chosen == rejected or (isinstance(chosen, str) and chosen.strip() == str(rejected).strip()):
            return "identical responses"
        pair = {**kept, "prompt": prompt, "chosen": chosen, "rejected": rejected}
        given = rated.given.get("prompt")
        if isinstance(given, dict) and given.get("tools"):
            pair["tools"] = json.dumps(given["tools"])
        if self.margins:
            pair["margin"] = chosen_rating - rejected_rating
        if self.layout.margin:
            pair["chosen_rating"], pair["rejected_rating"] = ratings
        return pair

    def features(self) -> Features:
        """Return the columns of the pairs. A prompt or response column contains strings, or messages if any value is not plain text."""
        text, messages, number = Value("string"), List(Json()), Value("float64")
        sides = dict.fromkeys(SIDES, text if self.text_responses else messages)
        ratings = {"chosen_rating": number, "rejected_rating": number} if self.layout.margin else {}
        return Features(
            {
                "id": text,
                "prompt": text if self.text_prompts else messages,
                **sides,
                **({"margin": number} if self.margins else {}),
                **ratings,
                **({"source_id": self.rows.features["id"]} if self.repeated_ids else {}),
                **{name: self.rows.features[name] for name in self.kept},
                **({"tools": text} if self.has_tools and "tools" not in self.kept else {}),
            }
        )

    async def results(self) -> AsyncIterator[dict[str, Any] | Reject]:
        """Yield the pairs and the rejects in the order of the rows."""
        for group in self._groups(self.rows, "Writing"):
            if group[0][0] in self.bad:  # all rows of a group are bad, or none
                continue
            for pair in self._pairs(group):
                if not isinstance(pair, Reject):
                    if self.has_tools:
                        pair.setdefault("tools", None)
                    if not self.text_prompts:
                        pair["prompt"] = _messages(pair["prompt"], "user")
                    if not self.text_responses:
                        pair |= {side: _messages(pair[side], "assistant") for side in SIDES}
                yield pair


def _messages(value: Any, role: str) -> list[dict[str, Any]]:
    return [{"role": role, "content": value}] if isinstance(value, str) else value
