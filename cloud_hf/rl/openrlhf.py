"""Reward function file for OpenRLHF: pass this file's path as `--reward.remote_url`.

    CLOUD_REWARD_URL=http://localhost:8000 CLOUD_POLICY_TOKENIZER=Qwen/Qwen3-0.6B python -m openrlhf.cli.train_ppo_ray \\
        --reward.remote_url path/to/cloud_hf/rl/openrlhf.py ...

Environment variables:

    CLOUD_REWARD_URL          address of a reward server, or
    CLOUD_REWARD_MODEL        Hub id or folder of a reward model, loaded in every rollout process
    CLOUD_REWARD_API_KEY      key of the server, if it asks for one
    CLOUD_POLICY_TOKENIZER    Hub id or folder of the policy: its chat template says where turns begin and end
    CLOUD_REWARD_OPTIONS      JSON of `num_critiques`, `temperature`, `max_new_tokens` (512), `seed`
    CLOUD_REWARD_UNJUDGEABLE  reward of responses that cannot be judged, such as over-long ones; an error by default, and
                              always until one has been judged: then the settings are at fault, not a response

OpenRLHF runs this file by its path, calls `reward_func` from several threads with one response each, and swallows its
errors; they are logged here.
"""

import json
import logging
import os
import threading
from functools import cache

import torch
from transformers import AutoTokenizer

# By full name: OpenRLHF runs this file by its path, outside the package
from cloud_hf.loading import load_reward_model
from cloud_hf.scoring import Scorer, TransformersScorer
from cloud_hf.serving.rendered_chats import RenderedChats


logger = logging.getLogger(__name__)

_loading = threading.Lock()


def reward_func(queries: list[str], prompts: list[str], labels: list, **kwargs) -> dict:
    """
    Judge responses.

    Args:
        queries (`list[str]`):
            Prompt and response each, rendered with the policy's chat template, special tokens included.
        prompts (`list[str]`):
            The rendered prompts. What follows one in its query is the response, whatever it spells.
        labels (`list`):
            Not used.

    Returns:
        `dict`: `rewards` and `scores`, both the rewards (so a range for dynamic filtering is one of rewards, not of 0 to 1),
        and `extra_logs`: spread and share of cut critiques, and whether a response could not be judged. Tensors of
        shape (B,).

    Raises:
        `ValueError`: If an environment variable is missing or a response cannot be judged.
    """
    try:
        judge = _judge()
        rows = [judge.judge(query, prompt) for query, prompt in zip(queries, prompts, strict=True)]
    except Exception:
        logger.exception("No reward for %d responses.", len(queries))
        raise
    rewards, spreads, cut, unjudgeable = (
        torch.tensor(column, dtype=torch.float32) for column in zip(*rows, strict=True)
    )
    logs = {"cloud_reward_std": spreads, "cloud_critiques_cut": cut, "cloud_unjudgeable": unjudgeable}
    return {"rewards": rewards, "scores": rewards.clone(), "extra_logs": logs}


class _Judge:
    """What the environment variables name."""

    def __init__(self):
        self.chats = RenderedChats(AutoTokenizer.from_pretrained(_variable("CLOUD_POLICY_TOKENIZER")))
        self.scorer = _load_scorer()
        self.options = {"max_new_tokens": 512, **json.loads(os.environ.get("CLOUD_REWARD_OPTIONS", "{}"))}
        unjudgeable = os.environ.get("CLOUD_REWARD_UNJUDGEABLE")
        self.unjudgeable = None if unjudgeable is None else float(unjudgeable)
        self.has_judged = False

    def judge(self, query: str, prompt: str) -> tuple[float, float, float, float]:
        """Reward, spread, share of cut critiques, and whether the response could not be judged."""
        try:
            *messages, answer = self.chats.parse(query, prompt)
            [score] = self.scorer.score([messages], [answer["content"]], **self.options)
        except ValueError as error:
            if self.unjudgeable is None or not self.has_judged:
                raise
            logger.warning("A response cannot be judged and gets the reward %s: %s", self.unjudgeable, error)
            return self.unjudgeable, 0.0, 0.0, 1.0
        self.has_judged = True
        cut = score.finish_reasons.count("length") / len(score.finish_reasons)
        return score.reward, score.reward_std, cut, 0.0


class _OneAtATime:
    """A scorer for several threads; a model in this process takes one batch at a time."""

    def __init__(self, scorer: Scorer):
        self.scorer = scorer
        self.lock = threading.Lock()

    def score(self, *args, **kwargs):
        with self.lock:
            return self.scorer.score(*args, **kwargs)


def _judge() -> _Judge:
    with _loading:
        return _loaded_judge()


@cache
def _loaded_judge() -> _Judge:
    return _Judge()


def _load_scorer() -> Scorer:
    url, model = os.environ.get("CLOUD_REWARD_URL"), os.environ.get("CLOUD_REWARD_MODEL")
    if (url is None) == (model is None):
        raise ValueError("Set either CLOUD_REWARD_URL (a reward server) or CLOUD_REWARD_MODEL (a model to load here).")
    if url is not None:
        from cloud_hf.serving.client import CLoudClient

        return CLoudClient(url, api_key=os.environ.get("CLOUD_REWARD_API_KEY"))
    return _OneAtATime(TransformersScorer(*load_reward_model(model)))


def _variable(name: str) -> str:
    if not os.environ.get(name):
        raise ValueError(f"Set the environment variable {name}; see the top of {__file__}.")
    return os.environ[name]
