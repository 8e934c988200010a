"""Reward function file for OpenRLHF: pass this file's path as `--reward.remote_url`.

    CLOUD_REWARD_URL=http://localhost:8000 CLOUD_POLICY_TOKENIZER=Qwen/Qwen3-0.6B python -m openrlhf.cli.train_ppo_ray \\
        --reward.remote_url path/to/cloud_hf/rl/openrlhf.py ...

Environment variables:

    CLOUD_REWARD_URL          address of a reward server, or comma-separated addresses of its replicas; or
    CLOUD_REWARD_MODEL        Hub id or folder of a reward model, loaded in every rollout process
    CLOUD_REWARD_API_KEY      API key for the server, if it requires one
    CLOUD_REWARD_CASCADE      file that contains a cascade's fit. CLOUD_REWARD_URL then lists one server per stage, separated by spaces
    CLOUD_POLICY_TOKENIZER    Hub id or folder of the policy, whose chat template shows where turns begin and end
    CLOUD_REWARD_OPTIONS      JSON object with any of `num_critiques`, `temperature`, `max_new_tokens` (default 512), `seed`
    CLOUD_REWARD_CHANGED      "warn" (the default) or "error": whether to log a warning or raise an error if the reward model's chat
                              template hides or changes text in a response, such as the text before a `</think>`
    CLOUD_REWARD_UNJUDGEABLE  reward for responses that cannot be judged, such as over-long ones. By default, such a response raises an
                              error. It always does so before any response has been judged, because wrong settings are then the likely
                              cause

OpenRLHF loads this file by its path, and calls `reward_func` from several threads with one response each. OpenRLHF swallows
errors, so they are logged here.
"""

import json
import logging
import os
import threading
from contextlib import nullcontext
from functools import cache

import torch
from transformers import AutoTokenizer

# These imports are absolute, because OpenRLHF loads this file by its path, outside the package
from cloud_hf.chat_parsing import RenderedChats
from cloud_hf.loading import load_reward_model
from cloud_hf.rl.environment_scorer import read_reward, served_scorer
from cloud_hf.rl.hidden_text import check_policy, report_hidden_text
from cloud_hf.scores import Sampling, Scorer
from cloud_hf.scoring import TransformersScorer


logger = logging.getLogger(__name__)

_loading = threading.Lock()


def reward_func(queries: list[str], prompts: list[str], labels: list, **kwargs) -> dict:
    """
    Judge responses.

    Args:
        queries (`list[str]`):
            Prompts with their responses, rendered with the policy's chat template, including special tokens.
        prompts (`list[str]`):
            The rendered prompts. All text that follows a prompt in its query is the response, even if it contains turn markers.

    Returns:
        `dict`: Tensors of shape (B,). `rewards` and `scores` both contain the rewards, so the range for dynamic filtering must be given on
        the reward scale, not from 0 to 1. `extra_logs` contains, for each response, the standard deviation of its rewards, the share of
        truncated critiques, and whether the response was changed or could not be judged.

    Raises:
        `ValueError`: If an environment variable is missing or invalid, or a response cannot be judged.
    """
    try:
        with _loading:  # `cache` alone would let two threads load the model at the same time
            model = _loaded()
        rows = [model.judge(query, prompt) for query, prompt in zip(queries, prompts, strict=True)]
    except Exception:
        logger.exception("No reward for %d responses.", len(queries))
        raise
    rewards, spreads, cut, changed, unjudgeable = (
        torch.tensor(column, dtype=torch.float32) for column in zip(*rows, strict=True)
    )
    logs = {
        "cloud_reward_std": spreads,
        "cloud_critiques_cut": cut,
        "cloud_response_changed": changed,
        "cloud_unjudgeable": unjudgeable,
    }
    return {"rewards": rewards, "scores": rewards.clone(), "extra_logs": logs}


class _RewardModel:
    """Scorer and options that the environment variables select."""

    def __init__(self):
        self.options = _read_options(os.environ.get("CLOUD_REWARD_OPTIONS", "{}"))
        unjudgeable = os.environ.get("CLOUD_REWARD_UNJUDGEABLE")
        self.unjudgeable = None if unjudgeable is None else read_reward("CLOUD_REWARD_UNJUDGEABLE", unjudgeable)
        self.on_changed = os.environ.get("CLOUD_REWARD_CHANGED", "warn")
        check_policy("CLOUD_REWARD_CHANGED", self.on_changed)
        self.chats = RenderedChats(AutoTokenizer.from_pretrained(_variable("CLOUD_POLICY_TOKENIZER")))
        self.scorer = _load_scorer()
        # A model in this process can score only one batch at a time
        self.turn = threading.Lock() if isinstance(self.scorer, TransformersScorer) else nullcontext()
        self.has_judged = False

    def judge(self, query: str, prompt: str) -> tuple[float, float, float, float, float]:
        """
        Return the reward, its standard deviation, the share of truncated critiques, and two flags: 1 if the chat template changed the
        response, and 1 if the response could not be judged.
        """
        try:
            *messages, answer = self.chats.parse(query, prompt)
            with self.turn:
                [score] = self.scorer.score([messages], [answer["content"]], **self.options)
        except ValueError as error:
            if self.unjudgeable is None or not self.has_judged:
                raise
            logger.warning("A response could not be judged and gets the reward %s: %s", self.unjudgeable, error)
            return self.unjudgeable, 0.0, 0.0, 0.0, 1.0
        report_hidden_text([score], self.on_changed)
        self.has_judged = True
        cut = score.finish_reasons.count("length") / len(score.finish_reasons)
        return score.reward, score.reward_std, cut, float(score.response_changed), 0.0


_loaded = cache(_RewardModel)


def _read_options(text: str) -> dict:
    try:
        options = {"max_new_tokens": 512, **json.loads(text)}
        Sampling(**options)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"CLOUD_REWARD_OPTIONS is {text!r:.200}; give a JSON object with any of `num_critiques`, `temperature`, `max_new_tokens` and "
            f"`seed`: {error}"
        ) from error
    return options


def _load_scorer() -> Scorer:
    url, model = os.environ.get("CLOUD_REWARD_URL"), os.environ.get("CLOUD_REWARD_MODEL")
    fit = os.environ.get("CLOUD_REWARD_CASCADE")
    if url is not None and model is None:
        return served_scorer(url, os.environ.get("CLOUD_REWARD_API_KEY"), fit)
    if fit is not None:
        raise ValueError(
            "With CLOUD_REWARD_CASCADE, CLOUD_REWARD_URL must list a reward server for each stage, and CLOUD_REWARD_MODEL must not be set."
        )
    if model is not None and url is None:
        return TransformersScorer(*load_reward_model(model))
    raise ValueError("Set either CLOUD_REWARD_URL (a reward server) or CLOUD_REWARD_MODEL (a model to load here).")


def _variable(name: str) -> str:
    if not os.environ.get(name):
        raise ValueError(f"Set the environment variable {name}; see the top of {__file__}.")
    return os.environ[name]
