"""Client for vLLM's own OpenAI-compatible server, for use with routers and clouds that offer no other API. Does not import torch."""

import json
import math
from typing import Any

from ..prompts import read_prompt, read_response
from ..scores import Sample, Score
from .client import CLoudClient
from .http_answers import read_number, read_sample


# The token that closes a critique, and the token whose logprob is the reward
_CLOSING_TOKENS = 2
# vLLM's server replaces lower logprobs with this value
_NO_LOGPROB = -9999.0


class CLoudChatClient(CLoudClient):
    r"""
    [`Scorer`] that uses the chat route of vLLM's OpenAI server (`vllm serve`), which must serve a CLoud model. Arguments, retries and
    errors are the same as for [`CLoudClient`], but `critiques`, `read_every` and `stop_when_stable` are not supported.

    Examples:

    ```python
    >>> client = CLoudChatClient("http://127.0.0.1:8000")
    >>> [score] = client.score(["What is 2+2?"], ["4"])
    ```
    """

    route = "/v1/chat/completions"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self._replicas.several:
            raise ValueError(
                "Put a router in front of the vLLM servers, and pass only the router's address: the servers' chat route does not show "
                "whether they all serve the same reward model."
            )

    def _body(self, item: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
        if "critiques" in item:
            raise ValueError("vLLM's chat route writes critiques and cannot score existing ones; drop `critiques`")
        if "read_every" in options or "stop_when_stable" in options:
            raise ValueError("vLLM's chat route returns no partial rewards; drop `read_every` and `stop_when_stable`")
        conversation = read_prompt(item["prompt"])
        messages = [*conversation.messages, read_response(item["response"])]
        body = {
            "messages": [_spell(message) for message in messages],
            "n": options["num_critiques"],
            "temperature": options["temperature"],
            "max_tokens": options["max_new_tokens"] + _CLOSING_TOKENS,
            "logprobs": True,
            # The first of the two is the sampled token's logprob. If vLLM ended the critique at the token limit, the second shows
            # whether the model itself would have ended it there
            "top_logprobs": 2,
            "return_token_ids": True,
        }
        if conversation.tools:
            # In the field `tools`, vLLM would reorder and drop keys, and let the critic call the tools
            body["chat_template_kwargs"] = {"tools": conversation.tools}
        # Greedy critiques need no seed, and a seed may crash a CPU engine (see `seed_for` in `vllm/requests.py`)
        return body | ({"seed": options["seed"]} if "seed" in options and options["temperature"] > 0 else {})

    def _score_of(self, answer: Any, max_new_tokens: int) -> Score:
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        if [choice["index"] for choice in choices] != list(range(len(choices))):
            raise ValueError("the choices are not numbered from 0")
        return Score.of([self._sample(choice, max_new_tokens) for choice in choices])

    @staticmethod
    def _sample(choice: dict[str, Any], max_new_tokens: int) -> Sample:
        tokens, ids = choice["logprobs"]["content"], choice["token_ids"]
        if len(tokens) != len(ids) or len(ids) < _CLOSING_TOKENS:
            raise ValueError(f"{len(tokens)} logprobs for {len(ids)} tokens")
        reward = read_number(tokens[-1]["logprob"])
        if choice["finish_reason"] != "stop" or not math.isfinite(reward) or reward <= _NO_LOGPROB:
            raise ValueError(f"no reward (finish reason {choice['finish_reason']!r:.60})")
        critique_ids = ids[:-_CLOSING_TOKENS]
        is_cut = False
        if len(critique_ids) == max_new_tokens:  # vLLM always ends a critique at this length
            closing = tokens[-_CLOSING_TOKENS]
            likeliest = max(read_number(other["logprob"]) for other in closing["top_logprobs"])
            is_cut = read_number(closing["logprob"]) < likeliest
        text = (choice["message"]["content"] or "").strip()
        return read_sample(reward, text, critique_ids, "length" if is_cut else "stop")


def _spell(message: dict[str, Any]) -> dict[str, Any]:
    """Spell a message as vLLM requires: each tool call with a type, an id (which may be empty), and its arguments as JSON text."""
    if "reasoning" in message:
        raise ValueError("vLLM's chat route cannot tell `reasoning` from `reasoning_content`; rename it to the latter")
    calls = []
    for call in message.get("tool_calls", []):
        call = call if "function" in call else {"function": call}
        function = {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}
        calls.append({"id": "", "type": "function", **call, "function": function})
    return message | ({"tool_calls": calls} if calls else {})
