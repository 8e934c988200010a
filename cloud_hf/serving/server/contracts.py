"""Request and response bodies: ours, OpenRLHF's and LLaMA-Factory's."""

from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, WrapValidator, model_validator

from ...prompts import MAX_DEPTH
from ...scores import Sampling, Score


# Maximum number of fields in a body or a row, limited because errors name every unknown field
_MOST_FIELDS = 64

_MESSAGES = {"type": "array", "items": {"type": "object"}, "minItems": 1}
_CHAT = {
    "type": "object",
    "properties": {"messages": _MESSAGES, "tools": {"type": "array", "items": {"type": "object"}}},
    "required": ["messages"],
}
# These schemas only document the fields: the engine checks prompts, with the same rules as every other backend
Prompt = Annotated[Any, WithJsonSchema({"anyOf": [{"type": "string"}, _MESSAGES, _CHAT]})]
Response = Annotated[
    str,
    WrapValidator(lambda value, check: value if isinstance(value, dict) else check(value)),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object"}]}),
]
Chat = Annotated[Any, WithJsonSchema({"anyOf": [_MESSAGES, _CHAT]})]


@dataclass(frozen=True)
class Row:
    """One response to judge."""

    prompt: Any
    response: Any
    critiques: list[str] | None = None


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _check_fields(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > _MOST_FIELDS:
            raise ValueError(f"there are {len(value)} fields; at most {_MOST_FIELDS} are allowed")
        return value


class _Body(_Strict):
    @model_validator(mode="before")
    @classmethod
    def _check_text(cls, body: Any) -> Any:
        check_text(body)
        return body


class RewardInput(_Strict):
    """A response to judge and the prompt it answers."""

    prompt: Prompt = Field(description="A user message, a list of chat messages, or `messages` with `tools`.")
    response: Response = Field(description="The response to judge: text, or an assistant message.")
    critiques: list[str] | None = Field(
        None, min_length=1, fail_fast=True, description="Critiques to score instead of generating new ones."
    )


class RewardRequest(_Body):
    """Responses to judge, as `inputs` or as `chats`, and options."""

    inputs: list[RewardInput] | None = Field(
        None,
        min_length=1,
        fail_fast=True,
        description="Rows with `prompt`, `response` and, optionally, `critiques`.",
    )
    chats: list[Chat] | None = Field(
        None, min_length=1, description="Complete conversations, each ending with the assistant message to judge."
    )
    num_critiques: int = Field(1, ge=1, description="Critiques per response; the reward is the mean over them.")
    temperature: float = Field(0.0, ge=0, le=100, allow_inf_nan=False, description="0 is greedy.")
    max_new_tokens: int | None = Field(
        None, ge=1, description="Maximum length of a critique in tokens. Defaults to the server's limit."
    )
    seed: int | None = Field(
        None, ge=-(2**63), lt=2**63, description="Sampling seed; the same seed gives the same critiques."
    )
    read_every: int | None = Field(
        None, ge=1, description="Also return the reward at every n-th token of each critique."
    )
    stop_when_stable: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="End a critique once its last three partial rewards differ by less than this.",
    )
    return_critiques: bool = Field(True, description="Whether to include the critiques' texts.")
    return_critique_ids: bool = Field(False, description="Whether to include the critiques' token ids.")
    stream: bool = Field(False, description="Send one critique while it is being written, as server-sent events.")

    @model_validator(mode="after")
    def _check_together(self) -> "RewardRequest":
        if (self.inputs is None) == (self.chats is None):
            raise ValueError("give either `inputs` or `chats`")
        if 0 < self.temperature < 0.001:
            raise ValueError("`temperature` must be 0 or at least 0.001")
        if self.num_critiques > 1 and self.temperature == 0:
            raise ValueError("`num_critiques` above 1 needs `temperature` above 0: greedy critiques are identical")
        if self.stop_when_stable is not None and self.read_every is None:
            raise ValueError("`stop_when_stable` compares partial rewards, so it needs `read_every`")
        given = [row for row, item in enumerate(self.inputs or []) if item.critiques is not None]
        if given and self.num_critiques > 1:
            raise ValueError(
                f"`num_critiques` cannot be combined with `inputs[{given[0]}].critiques`; omit `num_critiques`"
            )
        if self.stream and (len(self.inputs or self.chats or []) != 1 or self.num_critiques != 1 or given):
            raise ValueError(
                "`stream` takes a single input, writes a single critique, and does not accept `critiques`"
            )
        if self.stream and not self.return_critiques:
            raise ValueError("`stream` always sends the critique; omit `return_critiques`")
        return self

    def rows(self) -> list[Row]:
        """Return the rows to score. Raises `ValueError`, naming the chat, if one does not end with a response."""
        if self.inputs is not None:
            return [Row(item.prompt, item.response, item.critiques) for item in self.inputs]
        return [split_chat(chat, f"chats[{row}]") for row, chat in enumerate(self.chats or [])]

    def sampling(self, max_new_tokens: int) -> Sampling:
        """Return the sampling options; `max_new_tokens` is the default."""
        options = {option.name: getattr(self, option.name) for option in fields(Sampling)}
        return Sampling(**{**options, "max_new_tokens": self.max_new_tokens or max_new_tokens})


class RewardResult(BaseModel):
    """The judgement of one response."""

    reward: float = Field(description="Mean of `rewards`.")
    rewards: list[float]
    reward_std: float = Field(description="Population standard deviation of `rewards`.")
    critique: str | None = Field(description="The first critique; empty for a classic model.")
    critiques: list[str] | None
    finish_reasons: list[Literal["stop", "length", "stable"]]
    critique_ids: list[list[int]] | None = None
    response_changed: bool = Field(description="Whether the chat template hides or changes text in the response.")
    partial_rewards: list[list[float]] | None = Field(
        None, description="With `read_every`: for each critique, the rewards read inside it, then its final reward."
    )

    @classmethod
    def of(cls, score: Score, request: RewardRequest) -> "RewardResult":
        """Return the parts of a score that a request selects."""
        return cls(
            reward=score.reward,
            rewards=list(score.rewards),
            reward_std=score.reward_std,
            critique=score.critique if request.return_critiques else None,
            critiques=list(score.critiques) if request.return_critiques else None,
            finish_reasons=list(score.finish_reasons),  # pyright: ignore[reportArgumentType]  # checked by pydantic
            critique_ids=[list(ids) for ids in score.critique_ids] if request.return_critique_ids else None,
            response_changed=score.response_changed,
            partial_rewards=[list(rewards) for rewards in score.partial_rewards] or None,
        )


class RewardResponse(BaseModel):
    """Results in the order of the request's inputs."""

    model: str
    results: list[RewardResult]


class HealthResponse(BaseModel):
    """The served model and its properties, returned while the server is ready."""

    status: Literal["ready"] = "ready"
    model: str
    critique: bool = Field(description="Whether the model writes critiques.")
    context_length: int | None = Field(description="Maximum sequence length in tokens, including the critique.")
    model_version: str | None = Field(description="Hash of the model's files, or commit; the same for all replicas.")
    version: str = Field(description="Release of cloud-hf.")


class ErrorResponse(BaseModel):
    """The reason why a request failed."""

    error: str


class OpenRLHFRequest(_Body):
    """Request that OpenRLHF sends to its `--reward.remote_url`: decoded sequences, including special tokens."""

    model_config = ConfigDict(extra="ignore", strict=True)

    query: list[str] = Field(
        min_length=1, fail_fast=True, description="Prompt and response, in the policy's chat template."
    )
    prompts: list[str] | None = Field(None, fail_fast=True, description="The part of each query that is the prompt.")
    labels: Any = Field(None, description="Not used.")

    @model_validator(mode="after")
    def _check_together(self) -> "OpenRLHFRequest":
        if self.prompts is not None and len(self.prompts) != len(self.query):
            raise ValueError(f"{len(self.query)} entries in `query` but {len(self.prompts)} in `prompts`")
        return self


class OpenRLHFResponse(BaseModel):
    """Response that OpenRLHF expects; every list has one entry per query."""

    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]]


class LlamaFactoryRequest(_Body):
    """Request that LLaMA-Factory sends to a `reward_model` of type `api`."""

    model_config = ConfigDict(extra="ignore", strict=True)

    model: str = Field(description="Not used: the server has one model.")
    messages: list[str] = Field(
        min_length=1, fail_fast=True, description="Complete conversations, in the policy's chat template."
    )
    max_length: int | None = Field(None, description="Not used: over-long conversations get 422.")


class LlamaFactoryResponse(BaseModel):
    """Response that LLaMA-Factory expects."""

    id: str
    object: Literal["score.evaluation"] = "score.evaluation"
    model: str
    scores: list[float]


def check_text(body: Any):
    """Raise `ValueError`, naming the path, if a JSON value is nested too deeply or contains text that is not valid Unicode."""
    waiting: list[tuple[Any, tuple[str | int, ...]]] = [(body, ())]
    while waiting:
        value, path = waiting.pop()
        if len(path) > MAX_DEPTH:
            raise ValueError(f"`{spell_path(path[:4])}…` is nested more than {MAX_DEPTH} levels deep")
        if isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"`{spell_path(path)}` contains a lone surrogate at character {error.start}; send valid Unicode"
                ) from None
        elif isinstance(value, dict):
            waiting += [(name, (*path, "(key)")) for name in value]
            waiting += [(item, (*path, name)) for name, item in value.items()]
        elif isinstance(value, list):
            waiting += [(item, (*path, index)) for index, item in enumerate(value)]


def count_characters(value: Any) -> int:
    """Count the characters in all strings of a JSON value, including keys."""
    waiting, count = [value], 0
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            count += len(value)
        elif isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list):
            waiting += value
    return count


def spell_path(path: tuple[str | int, ...]) -> str:
    """Format a path in JavaScript notation: `("inputs", 3, "response")` becomes `inputs[3].response`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def split_chat(chat: Any, name: str) -> Row:
    """Split a conversation into prompt and response. Raises `ValueError`, naming the conversation, if it does not end with a response."""
    messages = chat.get("messages") if isinstance(chat, dict) else chat
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"`{name}` has no messages; give a list of messages that ends with an assistant message")
    last = messages[-1]
    if not isinstance(last, dict) or last.get("role") != "assistant":
        raise ValueError(f"`{name}` does not end with an assistant message to judge")
    if not isinstance(last.get("content"), str | list) and not last.get("tool_calls"):
        raise ValueError(f"`{name}` ends with a message whose `content` is not text")
    if len(messages) == 1:
        raise ValueError(f"`{name}` has no message for the assistant to answer")
    before = messages[:-1]
    return Row({**chat, "messages": before} if isinstance(chat, dict) else before, last)
