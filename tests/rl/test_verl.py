"""verl runs the file by its path and awaits `compute_score` with the keywords of its reward managers."""

import asyncio
import importlib.util
import inspect
import json
import math
from functools import partial

import numpy as np
import pandas as pd
import pytest
from models_for_tests import PROMPTS, RESPONSES

from cloud_hf.rl import verl


MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPTS[0]}]


@pytest.fixture
def compute_score():
    """The function as verl gets it: from a file, with the configured keywords bound."""
    spec = importlib.util.spec_from_file_location("custom_module", verl.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return partial(module.compute_score, max_new_tokens=8)


def extra_info(prompt=MESSAGES, **entries):
    """A row's own entries and those that verl adds."""
    return {"split": "train", "index": 3, "prompt": prompt, "num_turns": 2, "rollout_reward_scores": {}, **entries}


def rows(address, prompts, responses):
    return [
        {
            "data_source": "tests/chats", "solution_str": response, "ground_truth": "42", "extra_info": extra_info(prompt),
            "reward_router_address": address, "reward_model_tokenizer": None,
        }
        for prompt, response in zip(prompts, responses, strict=True)
    ]  # fmt: skip


@pytest.fixture(autouse=True)
def url(reward_server, monkeypatch):
    monkeypatch.setenv("CLOUD_REWARD_URL", f"http://{reward_server}")


def test_scores_are_the_models_own(compute_score, scorer):
    """All rows of a batch at once, as the reward loop awaits them."""
    assert inspect.iscoroutinefunction(compute_score)  # how verl tells that it is to be awaited
    prompts = [*PROMPTS, MESSAGES, np.array(MESSAGES, dtype=object)]
    responses = [*RESPONSES, "It is 42.", "It is 42."]

    async def batch():
        return await asyncio.gather(*(compute_score(**row) for row in rows(None, prompts, responses)))

    results = asyncio.run(batch())
    scores = scorer.score([*PROMPTS, MESSAGES, MESSAGES], responses, max_new_tokens=8)
    assert [result["score"] for result in results] == pytest.approx([score.reward for score in scores], abs=1e-4)
    assert [result["critique"] for result in results] == [score.critique for score in scores]
    assert [result["critique_cut"] for result in results] == [score.finish_reasons == ("length",) for score in scores]
    # One set of keys, numbers and texts: verl collects them by key
    assert len({tuple(result) for result in results}) == 1
    assert all(isinstance(value, float | str) for result in results for value in result.values())


def test_messages_from_a_parquet_file(tmp_path):
    """Parquet turns lists into arrays at all depths, and gives each message and each call the fields of all."""
    calls = [{"type": "function", "function": {"name": "add", "arguments": {name: "12"}}} for name in ("a", "b")]
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "What is 12 + 30?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "I add."}], "tool_calls": calls},
        {"role": "tool", "name": "add", "content": [{"type": "text", "text": "42"}]},
    ]
    pd.DataFrame({"extra_info": [{"prompt": messages}]}).to_parquet(tmp_path / "rows.parquet")
    [info] = pd.read_parquet(tmp_path / "rows.parquet")["extra_info"]
    assert isinstance(info["prompt"][1]["tool_calls"], np.ndarray) and info["prompt"][0]["name"] is None
    assert verl._prompt("s", info) == messages
    with_tools = {
        "messages": np.array(MESSAGES, dtype=object),
        "tools": np.array([{"index": np.int64(1)}], dtype=object),
    }
    assert verl._prompt("s", {"prompt": with_tools}) == {"messages": MESSAGES, "tools": [{"index": 1}]}
    json.dumps([verl._prompt("s", {"prompt": prompt}) for prompt in (info["prompt"], with_tools)])


def test_nested_arrays_are_judged_like_lists(compute_score, scorer):
    messages = [*MESSAGES[:1], {"role": "user", "content": [{"type": "text", "text": PROMPTS[0]}], "name": None}]
    arrays = np.array([MESSAGES[0], {**messages[1], "content": np.array(messages[1]["content"], dtype=object)}])
    [row] = rows(None, [arrays], ["It is 42."])
    [score] = scorer.score([MESSAGES], ["It is 42."], max_new_tokens=8)
    assert asyncio.run(compute_score(**row))["score"] == pytest.approx(score.reward, abs=1e-4)


def test_address_from_the_environment(compute_score, reward_server, scorer, monkeypatch):
    """Without its own reward model, verl passes neither router address nor tokenizer."""
    [row] = rows(None, PROMPTS[:1], RESPONSES[:1])
    del row["reward_router_address"], row["reward_model_tokenizer"]
    monkeypatch.delenv("CLOUD_REWARD_URL")
    with pytest.raises(ValueError, match="CLOUD_REWARD_URL is not set"):
        asyncio.run(compute_score(**row))
    monkeypatch.setenv("CLOUD_REWARD_URL", f"http://{reward_server}")
    [score] = scorer.score(PROMPTS[:1], RESPONSES[:1], max_new_tokens=8)
    assert asyncio.run(compute_score(**row))["score"] == pytest.approx(score.reward, abs=1e-4)


def test_several_critiques(compute_score, reward_server, scorer):
    options = {"num_critiques": 3, "temperature": 1.0, "seed": 5}
    [row] = rows(None, PROMPTS[:1], RESPONSES[:1])
    [score] = scorer.score(PROMPTS[:1], RESPONSES[:1], max_new_tokens=8, **options)
    result = asyncio.run(compute_score(**row, **options))
    assert result["score"] == pytest.approx(score.reward, abs=1e-4)
    assert result["reward_std"] == pytest.approx(score.reward_std, abs=1e-4) and score.reward_std > 0


@pytest.mark.parametrize("info", [None, {}, {"index": 3, "answer": "42"}])
def test_a_row_without_its_prompt_is_named(compute_score, info):
    [row] = rows("127.0.0.1:1", PROMPTS[:1], RESPONSES[:1])
    with pytest.raises(ValueError, match=r"'tests/chats' has no prompt in `extra_info`"):
        asyncio.run(compute_score(**{**row, "extra_info": info}))


@pytest.mark.parametrize("key", ["prompt", "raw_prompt", "question"])
def test_names_of_the_prompt(key):
    assert verl._prompt("s", {"prompt": None, key: PROMPTS[0]}) == PROMPTS[0]


def test_unjudgeable_responses(compute_score, reward_server):
    good, bad = rows(None, PROMPTS[:2], [RESPONSES[0], "long " * 1000])
    with pytest.raises(ValueError, match="512"):
        asyncio.run(compute_score(**bad))

    async def batch():
        return await asyncio.gather(*(compute_score(**row, unjudgeable_reward=-9.0) for row in (good, bad)))

    assert asyncio.run(compute_score(**bad, unjudgeable_reward="-9"))["score"] == -9.0  # text, from a shell
    first, second = asyncio.run(batch())
    assert second["score"] == -9.0 and second["unjudgeable"] == 1
    assert first["score"] != -9.0 and first["unjudgeable"] == 0 and math.isfinite(first["score"])
    assert list(first) == list(second)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"unjudgeable_reward": math.nan}, "`unjudgeable_reward` is nan; it must be a finite number"),
        ({"unjudgeable_reward": "low"}, "`unjudgeable_reward` is 'low'; it must be a finite number"),
        ({"unjudgeable_reward": [-1.0]}, r"`unjudgeable_reward` is \[-1.0\]; it must be a finite number"),
        ({"num_critiques": "2", "temperature": 1.0}, "`num_critiques` is '2'; it must be an integer"),
    ],
)
def test_wrong_settings_are_named(compute_score, options, says):
    [row] = rows(None, PROMPTS[:1], RESPONSES[:1])
    with pytest.raises(ValueError, match=says):
        asyncio.run(compute_score(**row, **options))


def test_wrong_settings_are_not_taken_for_unjudgeable_responses(compute_score, caplog):
    """Critiques longer than the server allows: every response would get the same reward."""
    short, long = rows(None, PROMPTS[:2], [RESPONSES[0], "long " * 1000])
    for row in (short, long):
        with pytest.raises(
            ValueError, match=r"No response has been judged so far, and a short one cannot.*server's limit is 1024"
        ):
            asyncio.run(compute_score(**row, unjudgeable_reward=-9.0, max_new_tokens=5000))
    # An over-long prompt or response that comes first is rejected for its own sake
    [prompt] = rows(None, ["long " * 1000], RESPONSES[:1])
    for row in (prompt, long):
        assert asyncio.run(compute_score(**row, unjudgeable_reward=-9.0))["score"] == -9.0
    assert "could not be judged and gets the reward -9.0" in caplog.text


@pytest.mark.parametrize(
    "options", [{"unjudgeable_reward": -1.0}, {"unjudgeable_reward": 0}, {"on_response_changed": "error"}]
)
def test_what_the_router_does_not_tell_is_refused_before_any_request(compute_score, options):
    [row] = rows("127.0.0.1:1", PROMPTS[:1], RESPONSES[:1])
    with pytest.raises(ValueError, match=rf"`{next(iter(options))}` is .* verl's router.*Use a reward server"):
        asyncio.run(compute_score(**row, **options))
