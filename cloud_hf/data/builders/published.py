"""The authors' published training data with its prompts put back."""

from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset, DatasetDict

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


@dataclass(kw_only=True)
class OfficialDataArguments:
    """
    Which data, from where.

    Parameters:
        mode (`str`):
            `"oracle"` or `"self-gen"`.
        output_dir (`str`):
            Folder for the dataset, its card and `build.json`.
        model_size (`str`, *optional*):
            `"8b"` or `"70b"`, for `mode` `"self-gen"`.
        dataset_name (`str`, *optional*):
            The published data: Hub id, or a `save_to_disk` folder with both splits. Defaults to the authors' Hub id.
        dataset_test_name (`str`, *optional*):
            The published test split, where `dataset_name` is a file that holds the training split alone.
        feedback_name (`str`, *optional*, defaults to `"openbmb/UltraFeedback"`):
            UltraFeedback: Hub id, file or folder.
        interact_name (`str`, *optional*, defaults to `"openbmb/UltraInteract_pair"`):
            UltraInteract_pair, likewise.
        check_counts (`bool`, *optional*, defaults to `True`):
            Refuse data and sources with other numbers of rows than the published ones.
        limit (`int`, *optional*):
            Write only so many rows of each split.
        push_to_hub (`str`, *optional*):
            Hub id to upload the dataset to.
    """

    mode: str = field(metadata={"help": "oracle or self-gen."})
    output_dir: str = field(metadata={"help": "Folder for everything that is written."})
    model_size: str | None = field(default=None, metadata={"help": "8b or 70b, for self-gen."})
    dataset_name: str | None = field(default=None, metadata={"help": "The published data; the authors' by default."})
    dataset_test_name: str | None = field(default=None, metadata={"help": "Its test split, if that is a file apart."})
    feedback_name: str = field(default=ULTRA_FEEDBACK, metadata={"help": "UltraFeedback."})
    interact_name: str = field(default=ULTRA_INTERACT, metadata={"help": "UltraInteract_pair."})
    check_counts: bool = field(default=True, metadata={"help": "Refuse other numbers of rows."})
    limit: int | None = field(default=None, metadata={"help": "Write only so many rows of each split."})
    push_to_hub: str | None = field(default=None, metadata={"help": "Hub id to upload the dataset to."})

    def __post_init__(self):
        published_name(self.mode, self.model_size)
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"`limit` is {self.limit}; it must be at least 1.")
        sources = [self.dataset_name, self.dataset_test_name, self.feedback_name, self.interact_name]
        if Path(self.output_dir).resolve() in {Path(name).resolve() for name in sources if name is not None}:
            raise ValueError(f"`output_dir` is one of the sources ({self.output_dir}); name another folder.")

    def load_splits(self) -> dict[str, Dataset]:
        """The published rows by split."""
        name = self.dataset_name or published_name(self.mode, self.model_size)
        splits = {"train": load_rows(name, "train")}
        if self.dataset_test_name is None:
            splits["test"] = load_rows(name, "test", needs_split=True)
        else:
            splits["test"] = load_rows(self.dataset_test_name, "test")
        return splits


ARGUMENTS = (OfficialDataArguments,)


def main(args: OfficialDataArguments):
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
    whole = DatasetDict({split: add_prompts(rows, sources) for split, rows in splits.items()})
    counts["empty_prompts"] = sum(not prompt.strip() for rows in whole.values() for prompt in rows["prompt"])
    folder = DatasetFolder(args.output_dir, "Published CLoud data with its prompts", settings)
    try:
        with folder.open_journal():  # refuses other settings and a second writer
            (folder.path / RECORD).unlink(missing_ok=True)
            whole.save_to_disk(args.output_dir)
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
