"""Command-line arguments that the example scripts share."""

from dataclasses import dataclass, field, fields

from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from trl import ModelConfig

from ..data.rows import load_rows
from ..loading import tokenizer_source


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
            Split to evaluate on while training, where `eval_strategy` asks for it.
        eval_dataset_name (`str`, *optional*):
            Dataset to evaluate on. Needed where `dataset_name` has no such split; without splits it is taken whole.
    """

    dataset_name: str = field(metadata={"help": "Hub id, JSONL or Parquet file, or save_to_disk folder."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_test_split: str = field(default="test", metadata={"help": "Split for evaluation while training."})
    eval_dataset_name: str | None = field(default=None, metadata={"help": "Dataset for evaluation while training."})

    def load(self, eval_strategy: str) -> tuple[Dataset, Dataset | None]:
        """The training rows, and the evaluation rows if `eval_strategy` asks for any."""
        train = load_rows(self.dataset_name, self.dataset_train_split, self.dataset_config)
        if eval_strategy == "no":
            return train, None
        if self.eval_dataset_name is not None:
            return train, load_rows(self.eval_dataset_name, self.dataset_test_split, self.dataset_config)
        # Never the training rows again
        return train, load_rows(self.dataset_name, self.dataset_test_split, self.dataset_config, needs_split=True)


_LORA_OPTIONS = (
    "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_target_parameters", "lora_modules_to_save",
    "use_rslora", "use_dora",
)  # fmt: skip


@dataclass
class TrainedModelConfig(ModelConfig):
    """[`~trl.ModelConfig`], in which options of an adapter need `use_peft`: without it TRL passes over them."""

    def __post_init__(self):
        super().__post_init__()
        defaults = {option.name: option.default for option in fields(self)}
        given = [name for name in _LORA_OPTIONS if getattr(self, name) != defaults[name]]
        if given and not self.use_peft:
            raise ValueError(
                f"`{given[0]}` is {getattr(self, given[0])!r}, but without `use_peft` no adapter is made, and one that "
                f"`model_name_or_path` names keeps its own options. Add `--use_peft True`, or leave `{given[0]}` out."
            )


@dataclass
class RewardModelConfig(TrainedModelConfig):
    """
    [`TrainedModelConfig`] for reward training, where dropout is off (`disable_dropout`).

    Parameters:
        lora_dropout (`float`, *optional*, defaults to `0.0`):
            Dropout of an adapter. Needs `--disable_dropout False`.
    """

    lora_dropout: float = field(default=0.0, metadata={"help": "LoRA dropout. Needs --disable_dropout False."})


def model_init_kwargs(model_args: ModelConfig, training_args) -> dict:
    """What `from_pretrained` gets: the options of [`~trl.ModelConfig`], then those of `model_init_kwargs`."""
    return {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }


def checkpoint_to_resume(training_args) -> str | bool | None:
    """`resume_from_checkpoint` as a path, or `True` for the last checkpoint of the output folder."""
    value = training_args.resume_from_checkpoint
    return True if value is not None and value.lower() == "true" else value


def load_tokenizer(model_args: ModelConfig, training_args) -> PreTrainedTokenizerBase:
    """The model's or adapter's tokenizer, with the chat template of `chat_template_path` if that is given."""
    tokenizer = AutoTokenizer.from_pretrained(
        tokenizer_source(model_args.model_name_or_path, revision=model_args.model_revision),
        revision=model_args.model_revision,
        trust_remote_code=training_args.trust_remote_code,
    )
    if training_args.chat_template_path is not None:
        set_chat_template(tokenizer, training_args.chat_template_path)
    return tokenizer


def set_chat_template(tokenizer: PreTrainedTokenizerBase, path: str):
    """
    Give a tokenizer the chat template of a Jinja file.

    Raises:
        `ValueError`: If `path` is not a Jinja file: tokens cannot be added once the critique format is built.
    """
    if not path.endswith((".jinja", ".j2")):
        raise ValueError(f"`chat_template_path` is {path!r}; it must be a Jinja file here.")
    with open(path, encoding="utf8") as file:
        tokenizer.chat_template = file.read()
