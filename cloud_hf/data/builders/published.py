"""Add the prompts to the authors' published training data."""

from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, DatasetDict

from ...arguments import check_bounds, documented
from ..folder import RECORD, DatasetFolder
from ..journal import JournalError
from ..published_data import (
    PUBLISHED_ROWS,
    SPLITS,
    ULTRA_FEEDBACK,
    ULTRA_INTERACT,
    PromptSources,
    add_prompts,
    check_number,
    published_name,
)
from ..rows import load_rows


@documented
@dataclass(kw_only=True)
class PublishedDataArguments:
    """
    Published data and the sources of its prompts.

    Parameters:
        mode (`str`):
            Author of the critiques: `"oracle"` (a strong model) or `"self-gen"` (the authors' models after stage 1).
        output_dir (`str`):
            Folder for the dataset, its card and `build.json`.
        model_size (`str`, *optional*):
            Size of the model after stage 1, `"8b"` or `"70b"`; only for `"self-gen"`.
        dataset_name (`str`, *optional*):
            Published data: Hub id, or a `save_to_disk` folder with both splits. Defaults to the authors' Hub id.
        dataset_test_name (`str`, *optional*):
            Published test split, if `dataset_name` is a file with the training split only.
        feedback_name (`str`, *optional*, defaults to `"openbmb/UltraFeedback"`):
            UltraFeedback: Hub id, file or folder.
        interact_name (`str`, *optional*, defaults to `"openbmb/UltraInteract_pair"`):
            UltraInteract_pair, likewise.
        check_counts (`bool`, *optional*, defaults to `True`):
            Refuse data and sources whose numbers of rows differ from the published ones.
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
        sources = [self.dataset_name, self.dataset_test_name, self.feedback_name, self.interact_name]
        if Path(self.output_dir).resolve() in {Path(name).resolve() for name in sources if name is not None}:
            raise ValueError(f"`output_dir` is one of the sources ({self.output_dir}); name another folder.")

    def load_splits(self) -> dict[str, Dataset]:
        """Load the published rows by split."""
        name = self.dataset_name or published_name(self.mode, self.model_size)
        splits = {"train": load_rows(name, "train")}
        if self.dataset_test_name is None:
            splits["test"] = load_rows(name, "test", needs_split=True)
        else:
            splits["test"] = load_rows(self.dataset_test_name, "test")
        return splits


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
        "dataset": args.dataset_name or published_name(args.mode, args.model_size),
        "mode": args.mode,
        "model_size": args.model_size,
        "feedback": args.feedback_name,
        "interact": args.interact_name,
        "limit": args.limit,
    }
    if args.limit is not None:
        splits = {split: rows.select(range(min(args.limit, len(rows)))) for split, rows in splits.items()}
    complete = DatasetDict({split: add_prompts(rows, sources) for split, rows in splits.items()})
    counts["empty_prompts"] = sum(not prompt.strip() for rows in complete.values() for prompt in rows["prompt"])
    folder = DatasetFolder(args.output_dir, "Published CLoud data with its prompts", settings)
    try:
        with folder.open_journal():  # refuses different settings and a second writer
            (folder.path / RECORD).unlink(missing_ok=True)
            complete.save_to_disk(args.output_dir)
            folder.write_record(counts)
    except (JournalError, OSError) as error:
        raise SystemExit(str(error)) from None
    written = ", ".join(f"{len(rows)} {split} rows" for split, rows in splits.items())
    print(
        f"{written} in {args.output_dir}; every prompt was found ({counts['rows_from_feedback']} in UltraFeedback, "
        f"{counts['rows_from_interact']} in UltraInteract_pair)."
    )
    if counts["empty_prompts"]:
        print(f"{counts['empty_prompts']} prompt(s) are empty in the sources; training refuses such rows.")
    if args.push_to_hub:
        folder.push(args.push_to_hub)
