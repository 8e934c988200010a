"""What programs call: the endpoints `/score`, `/compare`, `/versus`, `/best_of_n` and, with a policy server, `/generate`."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gradio as gr

from .backend import Backend
from .best_of_n_tab import MOST, check_candidates
from .compare_tab import check_responses
from .judging import Judging, Options, Waiting, check_lengths, is_whole, judge, judge_pair, read_prompt
from .policy import generate as ask_policy
from .problems import Problem, in_words
from .reward_distribution import preference
from .versus_tab import is_right, row_at


if TYPE_CHECKING:
    from cloud_hf.scoring import Score


def build(backend: Backend):
    """The endpoints. Until the answer is there, they send `{"status": …}` now and then."""
    for make in (_make_score, _make_compare, _make_versus, _make_best_of_n):
        endpoint = make(backend)
        gr.api(in_words(endpoint), api_name=endpoint.__name__)
    if backend.args.policy_url is not None:
        gr.api(in_words(_make_generate(backend)), api_name="generate")


# Programs see the names, arguments and docstrings of the functions within


def _make_score(backend: Backend) -> Callable:
    async def score(
        request: gr.Request,
        prompt: str,
        response: str,
        system: str = "",
        turns: list[list[str]] = [],  # noqa: B006
        num_critiques: int = 1,
        temperature: float = 0.0,
        max_new_tokens: int = backend.args.max_new_tokens,
        seed: int | None = None,
    ) -> dict:
        """
        Judge one response. `turns` are earlier turns as pairs [user, assistant]. Answers with reward, rewards, reward_std,
        critiques, finish_reasons ("length": the critique was cut), and percentile: percent of this model's known rewards
        that are lower, or null.
        """
        options = Options.read(backend, num_critiques, temperature, max_new_tokens, seed)
        asked = read_prompt(backend, _text(prompt), _text(system), _turns(turns))
        if not _text(response).strip():
            raise Problem("The response is empty.")
        check_lengths(backend, {"response": response})
        async for step in judge(backend, request.session_hash, asked, [response], options):
            yield _describe(backend, step[0]) if isinstance(step, list) else _status(step)

    return score


def _make_compare(backend: Backend) -> Callable:
    async def compare(
        request: gr.Request,
        prompt: str,
        responses: list[str],
        num_critiques: int = 1,
        temperature: float = 0.0,
        max_new_tokens: int = backend.args.max_new_tokens,
        seed: int | None = None,
    ) -> dict:
        """
        Compare 2 to 8 responses. Answers with scores, ranks (from 1; equal rewards share one), and preferences: in row i and
        column j the Bradley-Terry probability that response i is preferred to response j.
        """
        options = Options.read(backend, num_critiques, temperature, max_new_tokens, seed)
        asked = read_prompt(backend, _text(prompt))
        check_responses(backend, _texts("responses", responses))
        async for step in judge(backend, request.session_hash, asked, responses, options):
            yield _ranked(backend, step) if isinstance(step, list) else _status(step)

    return compare


def _make_versus(backend: Backend) -> Callable:
    async def versus(request: gr.Request, row: int = 1) -> dict:
        """
        Judge a row of the benchmark, from 1, with both models. Answers with its id, prompt and responses (the chosen one
        first), and for cloud and classic the scores and whether they are right.
        """
        if not is_whole(row):
            raise Problem("`row` must be a whole number, from 1.")
        await backend.loaded()
        shown = row_at(backend, int(row) - 1)
        options = Options(1, 0.0, backend.args.max_new_tokens)
        async for step in judge_pair(backend, request.session_hash, shown.prompt, shown.responses, options):
            if isinstance(step, tuple):
                known = {"id": shown.id, "prompt": shown.prompt, "responses": list(shown.responses)}
                yield known | _describe_pair(backend, *step)
            else:
                yield _status(step)

    return versus


def _make_best_of_n(backend: Backend) -> Callable:
    async def best_of_n(
        request: gr.Request,
        prompt: str,
        candidates: list[str],
        num_critiques: int = 1,
        temperature: float = 0.0,
        max_new_tokens: int = backend.args.max_new_tokens,
        seed: int | None = None,
    ) -> dict:
        """
        Judge 2 to 32 candidates. Answers with best (the place of the highest reward, from 0), scores, and curve: for n = 1,
        2, … the highest reward to be expected among n of them.
        """
        options = Options.read(backend, num_critiques, temperature, max_new_tokens, seed)
        asked = read_prompt(backend, _text(prompt))
        check_candidates(backend, _texts("candidates", candidates))
        async for step in judge(backend, request.session_hash, asked, candidates, options):
            yield _describe_best(backend, step) if isinstance(step, list) else _status(step)

    return best_of_n


def _make_generate(backend: Backend) -> Callable:
    async def generate(prompt: str, count: int = 8) -> list[str]:
        """Let the policy server write 2 to 32 candidates."""
        if not is_whole(count) or not 2 <= count <= MOST:
            raise Problem(f"Choose between 2 and {MOST} candidates.")
        yield await ask_policy(backend.args, backend.policy_turns, read_prompt(backend, _text(prompt)), int(count))

    return generate


# ---------------------------------------------------------------------------------------------------------- answers


def _describe(backend: Backend, score: "Score", has_distribution: bool = True) -> dict[str, Any]:
    known = has_distribution and backend.distribution.is_usable
    return {
        "reward": score.reward,
        "rewards": list(score.rewards),
        "reward_std": score.reward_std,
        "critiques": list(score.critiques),
        "finish_reasons": list(score.finish_reasons),
        "percentile": backend.distribution.percentile(score.reward) if known else None,
    }


def _describe_pair(backend: Backend, cloud: list["Score"], classic: list["Score"]) -> dict[str, Any]:
    """The distribution is that of the first model."""
    return {
        name: {"right": is_right(scores), "scores": [_describe(backend, score, name == "cloud") for score in scores]}
        for name, scores in (("cloud", cloud), ("classic", classic))
    }


def _describe_best(backend: Backend, scores: list["Score"]) -> dict[str, Any]:
    from .models import expected_highest

    rewards = [score.reward for score in scores]
    return {
        "best": max(range(len(rewards)), key=rewards.__getitem__),
        "curve": expected_highest(rewards),
        "scores": [_describe(backend, score) for score in scores],
    }


def _ranked(backend: Backend, scores: list["Score"]) -> dict[str, Any]:
    rewards = [score.reward for score in scores]
    return {
        "scores": [_describe(backend, score) for score in scores],
        "ranks": [1 + sum(other > reward for other in rewards) for reward in rewards],
        "preferences": [[preference(reward, other) for other in rewards] for reward in rewards],
    }


def _status(step: Waiting | Judging) -> dict[str, str]:
    if isinstance(step, Waiting):
        return {"status": step.words}
    return {"status": f"The model judges: {step.done} of {step.of} done…"}


# -------------------------------------------------------------------------------------------------------- arguments


def _text(value: Any) -> str:
    if not _is_text(value):
        raise Problem(f"Give text, not {type(value).__name__}, for prompts, system messages and responses.")
    return value


def _texts(name: str, value: Any) -> list[str]:
    if not isinstance(value, list) or not all(map(_is_text, value)):
        raise Problem(f"`{name}` must be a list of texts.")
    return value


def _turns(value: Any) -> list[tuple[str, str]]:
    if not isinstance(value, list) or not all(
        isinstance(turn, list) and len(turn) == 2 and all(map(_is_text, turn)) for turn in value
    ):
        raise Problem("`turns` must be a list of pairs of texts: [user, assistant].")
    return [tuple(turn) for turn in value]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
