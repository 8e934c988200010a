"""Reward function for verl, which sends requests to verl's own reward model servers or to a reward server.

    python -m verl.trainer.main_ppo reward.custom_reward_function.path=path/to/cloud_hf/rl/verl.py \\
        reward.custom_reward_function.name=compute_score \\
        +reward.custom_reward_function.reward_kwargs.max_new_tokens=512 ...

(In older versions, the options are called `custom_reward_function.path` and so on.)

With `reward.reward_model.enable=True`, verl starts vLLM servers for the reward model behind a router. Their chat route
returns the rewards, so cloud_hf must be installed where the servers run. If a server rejects a request, the router
responds with status 500, and vLLM's log contains the reason.

Otherwise, requests go to the reward server at CLOUD_REWARD_URL (or to its replicas, if the variable lists several
addresses, separated by commas), with the key in CLOUD_REWARD_API_KEY. To use a cascade, set CLOUD_REWARD_CASCADE to the
file that contains its fit, and list a server for each stage in CLOUD_REWARD_URL, separated by spaces.

verl passes the decoded response to a reward function, but not the prompt, so every row of the data must contain the
prompt in `extra_info`.
"""

import logging
import os
from functools import lru_cache
from typing import Any
from weakref import WeakSet

import numpy as np

# These imports are absolute, because verl loads this file by its path, outside the package
from cloud_hf.rl.environment_scorer import read_reward, served_scorer
from cloud_hf.rl.hidden_text import check_policy, report_hidden_text
from cloud_hf.serving.chat_client import CLoudChatClient


logger = logging.getLogger(__name__)

# Clients whose server has judged a response
_has_judged: WeakSet = WeakSet()

PROMPT_KEYS = ("prompt", "raw_prompt", "question")

# Logged for a response that was not judged. The keys are those of a judged response, because verl collects each key over the batch
_NOTHING_JUDGED = {"critique": "", "reward_std": 0.0, "critique_cut": 0.0, "response_changed": 0.0, "unjudgeable": 1.0}


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth,
    extra_info: dict | None,
    reward_router_address: str | None = None,
    reward_model_tokenizer=None,
    *,
    num_critiques: int = 1,
    temperature: float = 0.0,
    max_new_tokens: int = 512,
    seed: int | None = None,
    on_response_changed: str = "warn",
    unjudgeable_reward: float | None = None,
    **kwargs,
) -> dict[str, float | str]:
    """
    Judge one response.

    Args:
        data_source, ground_truth, reward_model_tokenizer:
            Ignored; verl always passes them.
        solution_str (`str`):
            The response.
        extra_info (`dict`):
            Contains the prompt (chat messages or a string) under the key `prompt`, `raw_prompt` or `question`.
        reward_router_address (`str`, *optional*):
            Host and port of verl's router to the vLLM servers. If there is no router, requests go to the reward server at
            CLOUD_REWARD_URL.
        num_critiques, temperature, max_new_tokens, seed:
            See [`Scorer`]; set them with `reward_kwargs`.
        on_response_changed (`str`, *optional*, defaults to `"warn"`):
            What to do with responses in which the reward model's chat template hides or changes text, such as the text before a
            `</think>`: `"warn"` or `"error"`.
        unjudgeable_reward (`float`, *optional*):
            Reward for responses that the server rejects, such as over-long ones. By default, such responses raise an error. An
            error is also raised if none has been judged yet and the server rejects even a short prompt and response, because wrong
            settings are then the likely cause. Not available with verl's router, which does not tell a rejected request from a failure.

    Returns:
        `dict`: `score`, which is the reward for training, and the following values for logging: `critique`, `reward_std`, `critique_cut`
        (share of critiques that were truncated), `response_changed` (0 or 1) and `unjudgeable` (0 or 1).

    Raises:
        `ValueError`: If an option is invalid, there is no server, `extra_info` contains no prompt, or the response cannot be judged.
    """
    check_policy("on_response_changed", on_response_changed)
    if reward_router_address and on_response_changed == "error":
        raise ValueError(
            "`on_response_changed` is 'error', but the vLLM servers behind verl's router only log that their chat template changed "
            "a response. Use a reward server (CLOUD_REWARD_URL), or 'warn'."
        )
    if reward_router_address and unjudgeable_reward is not None:
        raise ValueError(
            f"`unjudgeable_reward` is {unjudgeable_reward}, but verl's router responds with status 500 both to responses that are rejected "
            "and to failures. Use a reward server (CLOUD_REWARD_URL), or leave the option out and limit the length of the responses."
        )
    if unjudgeable_reward is not None:
        unjudgeable_reward = read_reward("unjudgeable_reward", unjudgeable_reward)
    client = _client(reward_router_address)
    options = {"num_critiques": num_critiques, "temperature": temperature}
    if getattr(client, "compares_responses", False) and options != {"num_critiques": 1, "temperature": 0.0}:
        raise ValueError(
            "`num_critiques` and `temperature` cannot be set with CLOUD_REWARD_CASCADE: each stage writes one greedy critique."
        )
    options |= {"max_new_tokens": max_new_tokens, "seed": seed}
    prompt = _prompt(data_source, extra_info)
    try:
        [score] = await client.ascore([prompt], [solution_str], **options)
    except ValueError as error:
        if unjudgeable_reward is None:
            raise
        await _check_accepted(client, options)
        logger.warning("A response could not be judged and gets the reward %s: %s", unjudgeable_reward, error)
        return {"score": unjudgeable_reward, **_NOTHING_JUDGED}
    _has_judged.add(client)
    report_hidden_text([score], on_response_changed)
    return {
        "score": score.reward,
        "critique": score.critique,
        "reward_std": score.reward_std,
        "critique_cut": score.finish_reasons.count("length") / len(score.finish_reasons),
        "response_changed": float(score.response_changed),
        "unjudgeable": 0.0,
    }


def _client(router_address: str | None) -> Any:
    url, fit = os.environ.get("CLOUD_REWARD_URL"), os.environ.get("CLOUD_REWARD_CASCADE")
    if router_address and fit:
        raise ValueError(
            "CLOUD_REWARD_CASCADE is set, but verl's router serves one model. Set reward.reward_model.enable=False, and list a server "
            "for each stage in CLOUD_REWARD_URL."
        )
    if router_address:
        return _shared(CLoudChatClient, f"http://{router_address}")
    if not url:
        raise ValueError(
            "There is no reward server: verl passed no `reward_router_address`, and the environment variable "
            "CLOUD_REWARD_URL is not set."
        )
    return _shared(served_scorer, url, os.environ.get("CLOUD_REWARD_API_KEY"), fit)


async def _check_accepted(client: Any, options: dict):
    """
    Raise `ValueError` if the server has not judged any response so far and rejects even a short one, because wrong settings would give
    every response the same reward. verl sends a batch at once, so waiting for the first reward would depend on the order of the responses.
    """
    if client in _has_judged:
        return
    try:
        await client.ascore(["What is 1 + 1?"], ["2"], **options)
    except ValueError as error:
        raise ValueError(
            f"No response has been judged so far, and a short one cannot be judged either: {error}"
        ) from error
    _has_judged.add(client)


# Create only one client per server, so that all calls share its connections and its limit on concurrent requests
_shared = lru_cache(maxsize=8)(lambda kind, *address: kind(*address))


def _prompt(data_source: str, extra_info: dict | None) -> str | list[dict]:
    for key in PROMPT_KEYS:
        prompt = (extra_info or {}).get(key)
        if prompt is not None:
            return _plain(prompt)
    raise ValueError(
        f"A row of {data_source!r} has no prompt in `extra_info` (it has {sorted(extra_info or {})}). Put the chat messages "
        "there as `prompt` when you build the dataset: verl does not pass the prompt to a reward function in any other way."
    )


def _plain(value: Any) -> Any:
    """
    Return chat messages as they were before they were stored in a Parquet file, which turns lists into arrays and adds a null for each field
    and each tool argument that another message has. Arguments stored as JSON text keep their nulls.
    """
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    return value
