"""Command-line arguments shared by the training commands."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available, is_kernels_available
from trl import ModelConfig

from ..argument_help import check_data_type, documented
from ..configuration_cloud import check_name
from ..data.journal import key_of
from ..data.preference_rows import SIDES, iterate_rows, read_preference
from ..data.rows import check_columns, load_rows
from ..loading import tokenizer_source


CHAT_TEMPLATES = Path(__file__).parents[1] / "chat_templates"


@documented
@dataclass
class DataArguments:
    """
    The training data.

    Parameters:
        dataset_name (`str`):
            Hub id, JSONL or Parquet file, or `save_to_disk` folder.
        dataset_config (`str`, *optional*):
            Configuration of a Hub dataset.
        dataset_train_split (`str`, *optional*, defaults to `"train"`):
            Split to train on.
        dataset_test_split (`str`, *optional*, defaults to `"test"`):
            Split to evaluate on during training, unless `eval_strategy` is "no".
        eval_dataset_name (`str`, *optional*):
            Dataset to evaluate on instead of `dataset_name`. If it has no splits, all of its rows are used.
        test_size (`float`, *optional*):
            Fraction of the training split's prompts to hold out for evaluation, such as 0.05. All rows that share a
            prompt go to the same side.
    """

    dataset_name: str
    dataset_config: str | None = None
    dataset_train_split: str = "train"
    dataset_test_split: str = "test"
    eval_dataset_name: str | None = None
    test_size: float | None = None

    def load(self, eval_strategy: str) -> tuple[Dataset, Dataset | None]:
        """Load the training rows, and the evaluation rows unless `eval_strategy` is "no"."""
        train = self._read("train", self.dataset_name, self.dataset_train_split)
        if self.test_size is not None:
            if eval_strategy == "no" or self.eval_dataset_name is not None:
                raise ValueError(
                    "`test_size` holds out training rows for evaluation: set `eval_strategy`, and omit `eval_dataset_name`."
                )
            return split_by_prompt(train, self.test_size)
        if eval_strategy == "no":
            return train, None
        name = self.eval_dataset_name or self.dataset_name
        # A training dataset without splits must not serve as its own evaluation set
        return train, self._read("eval", name, self.dataset_test_split, needs_split=not self.eval_dataset_name)

    def held_out(self) -> tuple[str, str]:
        """Return the name of the evaluation dataset and a description of the rows that are used."""
        if self.test_size is not None:
            return self.dataset_name, f"{self.test_size:.0%} of its prompts"
        return self.eval_dataset_name or self.dataset_name, f"split {self.dataset_test_split}"

    def _read(self, title: str, name: str, split: str, needs_split: bool = False) -> Dataset:
        rows = load_rows(name, split, self.dataset_config, needs_split)
        check_columns(rows.column_names, SIDES, f"The {title} dataset", (name, split, self.dataset_config))
        return rows


def split_by_prompt(rows: Dataset, test_size: float) -> tuple[Dataset, Dataset]:
    """
    Split rows into two parts so that no prompt is in both. A hash of each prompt decides which part it goes to; the
    second part gets the fraction `test_size` of the prompts.

    Raises:
        `ValueError`: If `test_size` is not between 0 and 1, or leaves one part without prompts.
    """
    keys = [_prompt_key(row) for _, row in iterate_rows(rows)]
    prompts = sorted(set(keys))
    count = round(len(prompts) * test_size) if 0 < test_size < 1 else 0
    if not 0 < count < len(prompts):
        raise ValueError(
            f"`test_size` is {test_size}, which puts all {len(prompts)} prompts on one side of the split; choose a fraction between 0 "
            "and 1 that leaves prompts on both sides."
        )
    held_out = set(prompts[:count])
    places: tuple[list[int], list[int]] = ([], [])
    for place, key in enumerate(keys):
        places[key in held_out].append(place)
    return rows.select(places[0]), rows.select(places[1])


def _prompt_key(row: dict[str, Any]) -> str:
    try:
        return key_of(read_preference(row).prompt)
    except (KeyError, ValueError):  # training reports bad rows
        return key_of(row.get("prompt"))


_LORA_OPTIONS = (
    "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_target_parameters", "lora_modules_to_save",
    "use_rslora", "use_dora",
)  # fmt: skip


@dataclass
class TrainedModelConfig(ModelConfig):
    """
    [`~trl.ModelConfig`] that rejects data types and attention kernels that cannot be used here. Without `use_peft`, it also rejects
    adapter options, because TRL would silently ignore them.
    """

    def __post_init__(self):
        super().__post_init__()
        check_data_type(self.dtype)
        check_attention(self.attn_implementation)
        defaults = {option.name: option.default for option in fields(self)}
        given = [name for name in _LORA_OPTIONS if getattr(self, name) != defaults[name]]
        if given and not self.use_peft:
            raise ValueError(
                f"`{given[0]}` is {getattr(self, given[0])!r}, but without `use_peft` no adapter is created, and an "
                f"existing adapter in `model_name_or_path` keeps its own options. Add `--use_peft True` or drop `{given[0]}`."
            )


# For each implementation: a function that reports whether it can be used here, and the package that provides it
_FLASH_ATTENTION = {
    "flash_attention_2": (is_flash_attn_2_available, "flash-attn"),
    "flash_attention_3": (is_flash_attn_3_available, "flash-attn-3"),
}


def check_attention(name: Any):
    """
    Raise `ValueError` if `attn_implementation` is FlashAttention or FlexAttention and this machine has no GPU, or if it is FlashAttention
    and no package with its kernels is installed.
    """
    is_flash = name in _FLASH_ATTENTION
    if (is_flash or name == "flex_attention") and not torch.accelerator.is_available():
        raise ValueError(
            f"`attn_implementation` is {name!r}, which supports training only on GPUs, and this machine has none. Use 'sdpa'."
        )
    if not is_flash or is_kernels_available():  # transformers downloads FlashAttention through `kernels`
        return
    is_available, package = _FLASH_ATTENTION[name]
    if not is_available():
        raise ValueError(
            f"`attn_implementation` is {name!r}, but the package `{package}` is not installed. Install it, or `kernels`, or use 'sdpa'."
        )


@documented
@dataclass
class RewardModelConfig(TrainedModelConfig):
    """
    [`TrainedModelConfig`] for reward training, which disables dropout by default (`disable_dropout`).

    Parameters:
        lora_dropout (`float`, *optional*, defaults to `0.0`):
            Dropout rate of the adapter. Requires `--disable_dropout False`.
    """

    lora_dropout: float = 0.0


def model_name(model_args: ModelConfig) -> str:
    """
    Return the name of the model to train. Raises `ValueError` if none is given, and `FileNotFoundError` if the name is
    neither a model folder nor a valid Hub id.
    """
    if model_args.model_name_or_path is None:
        raise ValueError("`model_name_or_path` is missing; set it to the model to start from.")
    check_name(model_args.model_name_or_path)
    return model_args.model_name_or_path


def model_init_kwargs(model_args: ModelConfig, training_args) -> dict:
    """Return the keyword arguments for `from_pretrained`. Those in `training_args.model_init_kwargs` override [`~trl.ModelConfig`]."""
    return {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }


def load_tokenizer(model_args: ModelConfig, training_args) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the model or adapter, with the chat template from `chat_template_path` if given."""
    tokenizer = AutoTokenizer.from_pretrained(
        tokenizer_source(model_name(model_args), revision=model_args.model_revision),
        revision=model_args.model_revision,
        trust_remote_code=training_args.trust_remote_code,
    )
    if training_args.chat_template_path is not None:
        set_chat_template(tokenizer, training_args.chat_template_path)
    return tokenizer


def set_chat_template(tokenizer: PreTrainedTokenizerBase, path: str):
    """
    Set a tokenizer's chat template. `path` is a Jinja file or the name of a model family that has a template in
    `cloud_hf/chat_templates`; anything else raises `ValueError`. TRL would also accept a model and copy its special
    tokens. That is not supported here, because no tokens can be added once the critique format has been built.
    """
    families = {file.stem: file for file in sorted(CHAT_TEMPLATES.glob("*.jinja"))}
    if path not in families and not path.endswith((".jinja", ".j2")):
        raise ValueError(
            f"`chat_template_path` is {path!r}; it must name a Jinja file (.jinja or .j2) or a family ({', '.join(families)})."
        )
    tokenizer.chat_template = Path(families.get(path, path)).read_text("utf8")
