"""The transformers pipeline "critique-reward", which turns a chat into a critique and a reward."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, cast

from transformers import Pipeline
from transformers.utils.chat_template_utils import Chat

from .configuration_cloud import CLoudConfig
from .scoring import Score, naming_row


_OPTIONS = ("num_critiques", "temperature", "max_new_tokens", "seed", "critique_prompt")


class CLoudPipeline(Pipeline):
    r"""
    Pipeline that writes critiques of responses and returns rewards. `import cloud_hf` registers it as `"critique-reward"`.

    Args:
        batch_size (`int`, *optional*, defaults to `1`):
            Sequences per forward pass.
        num_critiques, temperature, max_new_tokens, seed, critique_prompt (*optional*):
            See [`score_with_transformers`]. They can be overridden in each call.

    Raises:
        `ValueError`: If the model is not a CLoud model.

    Examples:

    ```python
    >>> judge = pipeline("critique-reward", model="org/my-cloud-rm")
    >>> messages = [{"role": "user", "content": "What is 2+2?"}, {"role": "assistant", "content": "4"}]
    >>> judge({"messages": messages}, max_new_tokens=256)
    {'reward': 1.3, 'critique': 'Correct and brief.', 'rewards': [1.3], 'critiques': ['Correct and brief.'],
     'reward_std': 0.0, 'finish_reasons': ['stop'], 'response_changed': False, 'log_likelihoods': []}
    >>> judge([{"prompt": "What is 2+2?", "response": answer} for answer in ("4", "5")], batch_size=2)
    ```
    """

    _load_tokenizer = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if not isinstance(self.model.config, CLoudConfig):
            raise ValueError(
                f"{type(self.model).__name__} is not a CLoud model. Create one with `CLoudForRewardModeling.from_base`."
            )

    def __call__(self, inputs, **kwargs) -> Any:
        """
        Judge responses.

        Args:
            inputs (`dict` or `list` or generator or `Dataset`):
                One or more inputs. An input is a list of messages that ends with the assistant's response; or
                `{"messages": [...]}` with such a list, and optionally `"tools"`; or `{"prompt": ..., "response": ...}`, with a prompt
                and a response as in [`Scorer`]. A list of inputs is sorted by length and judged in one call; a generator or dataset
                (torch's, Hugging Face's or a column of the latter) is read `batch_size` inputs at a time, as its results are consumed.
            **kwargs:
                `batch_size` and the options of [`CLoudPipeline`].

        Returns:
            `dict`, or a `list` or iterator of `dict`: the fields of [`Score`], except `critique_ids`,
            `critique_tokens` and `partial_rewards`.

        Raises:
            `ValueError`: If an input or option is invalid; the message names the row, counted from 0.
        """
        if isinstance(inputs, list) and not inputs:
            return []
        # Hugging Face's datasets and their columns, which transformers would take for a single input
        if isinstance(inputs, Iterable) and not isinstance(inputs, str | Mapping | list | tuple):
            inputs = (item for item in inputs)
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(self, **options):
        if unknown := sorted(options.keys() - set(_OPTIONS)):
            raise TypeError(f"The pipeline has no option `{unknown[0]}`; it accepts {', '.join(_OPTIONS)}.")
        # An option that is `None` keeps its default
        return {}, {name: value for name, value in options.items() if value is not None}, {}

    def preprocess(self, inputs) -> dict[str, Any]:
        """Split an input into prompt and response."""
        if isinstance(inputs, Chat | list):
            inputs = {"messages": inputs.messages if isinstance(inputs, Chat) else inputs}
        if isinstance(inputs, dict) and set(inputs) == {"prompt", "response"}:
            return inputs
        if not (isinstance(inputs, dict) and "messages" in inputs and set(inputs) <= {"messages", "tools"}):
            raise ValueError(
                f'The input is {inputs!r:.80}; give {{"messages": [...]}} or {{"prompt": ..., "response": ...}}.'
            )
        messages = inputs["messages"]
        if not (isinstance(messages, list) and messages and isinstance(messages[-1], dict)):
            raise ValueError(f"`messages` is {messages!r:.80}; give a list of chat messages.")
        *context, last = messages
        if last.get("role") != "assistant":
            raise ValueError(
                f"The last message has the role {last.get('role')!r}; it must be the assistant's response to judge."
            )
        prompt = {"messages": context, "tools": inputs["tools"]} if inputs.get("tools") else context
        return {"prompt": prompt, "response": last}

    def _forward(self, model_inputs: list[dict[str, Any]], **options) -> list[Score]:
        prompts = [row["prompt"] for row in model_inputs]
        responses = [row["response"] for row in model_inputs]
        return cast(Any, self.model).score(prompts, responses, self.tokenizer, **options)

    def postprocess(self, score: Score) -> dict[str, Any]:
        """Convert a score to plain data."""
        fields = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(score).items()}
        del fields["critique_ids"], fields["critique_tokens"], fields["partial_rewards"]
        return fields

    def save_pretrained(self, save_directory, **kwargs):
        """
        Save the model and the tokenizer as an ordinary model folder. transformers' own method would add this class to the config, and
        loading the folder would then require `trust_remote_code=True`.
        """
        self.model.save_pretrained(save_directory, **kwargs)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(save_directory, **kwargs)

    def run_single(self, inputs, preprocess_params, forward_params, postprocess_params) -> dict[str, Any]:
        """Judge one input."""
        [output] = self.get_iterator([inputs], 0, 1, preprocess_params, forward_params, postprocess_params)
        return output

    def get_iterator(
        self,
        inputs: Iterable,
        num_workers: int,
        batch_size: int,
        preprocess_params,
        forward_params,
        postprocess_params,
    ) -> Iterator[dict[str, Any]]:
        """Judge inputs chunk by chunk. The model batches the texts itself, so transformers' loader, which pads tensors, is not used."""
        options = {**forward_params, "batch_size": batch_size}
        at_once = len(inputs) if isinstance(inputs, list) else batch_size
        stream, start = iter(inputs), 0
        while chunk := list(islice(stream, at_once)):
            try:
                scores: Any = self.forward(
                    [naming_row(row, self.preprocess, item) for row, item in enumerate(chunk)], **options
                )
            except ValueError as error:
                raise ValueError(f"After {start} inputs: {error}" if start else str(error)) from error
            yield from map(self.postprocess, scores)
            start += len(chunk)
