"""Command-line arguments of everything that lets a model write its own critiques."""

from dataclasses import dataclass, field, fields
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer

from ..configuration_cloud import CLoudConfig
from ..loading import adapter_base, is_adapter, read_model_config, tokenizer_source
from ..modeling_cloud import CLoudForRewardModeling
from .builder_arguments import BuilderArguments
from .building import check_rows
from .model_identity import identify_model
from .schemas import PAIR_COLUMNS, response_of
from .self_critiques import SIDES, CritiqueOptions


# How a language model is asked; a CLoud model knows
_ASKED = {"critique_prompt": None, "critique_role": "user", "keep_thinking": False, "format": "cloud"}


@dataclass(kw_only=True)
class CriticArguments(BuilderArguments):
    """
    Which model criticises, and how much it may write. The arguments of [`BuilderArguments`], and

    Parameters:
        model_name_or_path (`str`):
            The model of stage 1 (a language model, or a LoRA adapter of one), or a CLoud model.
        critique_prompt, critique_role, keep_thinking, format:
            How a critique is asked for; use the values of stage 1. A CLoud model knows its own.
        num_critiques (`int`, *optional*, defaults to `1`):
            Critiques per response; with several, the columns hold lists.
        temperature (`float`, *optional*, defaults to `0.0`):
            Sampling temperature; 0 is greedy.
        max_new_tokens (`int`, *optional*, defaults to `1024`):
            Longest critique in tokens.
        longer_tries (`int`, *optional*, defaults to `2`):
            How often a critique that was cut is written again, with twice the tokens each time.
        truncated (`str`, *optional*, defaults to `"drop"`):
            What becomes of critiques that are cut even then: drop (with the row, if it has no other ones), or keep.
        overlong_policy (`str`, *optional*, defaults to `"error"`):
            What happens to rows that do not fit the model's context: error, drop or truncate_prompt.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the sampling.
    """

    model_name_or_path: str = field(metadata={"help": "The model of stage 1, or a CLoud model."})
    critique_prompt: str | None = field(default=None, metadata={"help": "Text that opens the critique turn."})
    critique_role: str = field(default="user", metadata={"help": "Role of the critique turn: user or assistant."})
    keep_thinking: bool = field(default=False, metadata={"help": "Show <think> blocks the template would drop."})
    format: str = field(default="cloud", metadata={"help": "Spelling of conversations: cloud or reference."})
    num_critiques: int = field(default=1, metadata={"help": "Critiques per response."})
    temperature: float = field(default=0.0, metadata={"help": "Sampling temperature; 0 is greedy."})
    max_new_tokens: int = field(default=1024, metadata={"help": "Longest critique in tokens."})
    longer_tries: int = field(default=2, metadata={"help": "Tries with twice the tokens for a critique that was cut."})
    truncated: str = field(default="drop", metadata={"help": "Critiques that stay cut: drop or keep."})
    overlong_policy: str = field(default="error", metadata={"help": "Over-long rows: error, drop or truncate_prompt."})
    seed: int = field(default=0, metadata={"help": "Seed of the sampling."})

    def __post_init__(self):
        super().__post_init__()
        self.critique_options()

    def critique_options(self) -> CritiqueOptions:
        """What critiques are asked for. Raises `ValueError` if it makes no sense."""
        return CritiqueOptions(**{each.name: getattr(self, each.name) for each in fields(CritiqueOptions)})

    def is_reward_model(self) -> bool:
        """Whether the critic is a CLoud model already."""
        return isinstance(read_model_config(self.model_name_or_path), CLoudConfig)

    def read_critic(self) -> CLoudConfig:
        """
        The config that says how the critic is asked.

        Raises:
            `ValueError`: If the model writes no critiques, or knows better than the options how it is asked.
        """
        name = self.model_name_or_path
        if not self.is_reward_model():
            base, revision = adapter_base(name) if is_adapter(name) else (name, None)
            tokenizer = AutoTokenizer.from_pretrained(tokenizer_source(name))
            asked = {option: getattr(self, option) for option in _ASKED}
            return CLoudForRewardModeling.config_from_base(base, tokenizer, revision=revision, **asked)
        config = read_model_config(name)
        if not config.critique:
            raise ValueError(f"{name} is a classic reward model: it writes no critiques.")
        if any(getattr(self, option) != default for option, default in _ASKED.items()):
            raise ValueError("A CLoud model knows how it is asked for critiques: leave those options out.")
        return config

    def load_pairs(self) -> Dataset:
        """The rows, both responses of each checked."""
        rows = self.load(*PAIR_COLUMNS)
        check_rows(rows, lambda row: [response_of(row, side) for side in SIDES])
        return rows

    def settings(self, builder: str, rows: Dataset, config: CLoudConfig, **engine: Any) -> dict[str, Any]:
        """All that the critiques depend on; `engine` is what runs the model."""
        return {
            "builder": builder,
            **self.describe(rows, PAIR_COLUMNS),
            **identify_model(self.model_name_or_path),
            **engine,
            "critique_prompt": config.critique_prompt,
            "critique_role": config.critique_role,
            "keep_thinking": config.keep_thinking,
            "format": config.format,
            "chat_template_kwargs": config.chat_template_kwargs,
            **vars(self.critique_options()),
        }
