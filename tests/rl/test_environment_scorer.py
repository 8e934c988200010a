"""A cascade over reward servers gives the rewards of one in this process, and spends the same, in every trainer's reward function."""

import asyncio

import pytest
from models_for_tests import PROMPTS, RESPONSES

from cloud_hf.cascade import CascadeFit, CascadeScorer, StageFit
from cloud_hf.rl import openrlhf, verl
from cloud_hf.rl.environment_scorer import served_scorer
from cloud_hf.rl.trl import async_cloud_reward, cloud_reward
from cloud_hf.serving import CLoudClient


GROUPS = [prompt for prompt in PROMPTS[:3] for _ in RESPONSES]
COMPLETIONS = RESPONSES * 3


@pytest.fixture
def fit(classic_scorer):
    """Weights and a threshold that leave half of the lone responses in doubt."""
    rewards = [score.reward for score in classic_scorer.score(PROMPTS, RESPONSES)]
    middle = sum(rewards) / len(rewards)
    away = sorted(abs(reward - middle) for reward in rewards)
    slope = 3.0 / (away[1] + away[2])  # half of the log-odds are above 1.5, a probability of 0.82
    return CascadeFit((StageFit(slope, 0.0, slope, middle), StageFit(2.0, 0.5, 1.0)), (0.82,))


@pytest.fixture
def in_process(classic_scorer, scorer, fit):
    return CascadeScorer([classic_scorer, scorer], fit)


@pytest.fixture
def environment(classic_server, reward_server, fit, tmp_path, monkeypatch):
    fit.save(tmp_path / "fit.json")
    monkeypatch.setenv("CLOUD_REWARD_URL", f"http://{classic_server} http://{reward_server}")
    monkeypatch.setenv("CLOUD_REWARD_CASCADE", str(tmp_path / "fit.json"))
    monkeypatch.delenv("CLOUD_REWARD_MODEL", raising=False)
    return monkeypatch


@pytest.fixture
def served(environment):
    return served_scorer(openrlhf._variable("CLOUD_REWARD_URL"), None, openrlhf._variable("CLOUD_REWARD_CASCADE"))


def test_groups_of_completions(served, in_process):
    expected = in_process.score(GROUPS, COMPLETIONS, max_new_tokens=8)
    rewards = [score.reward for score in expected]
    assert 0 < in_process.spent[1].responses < len(GROUPS)
    options = {"max_new_tokens": 8, "num_generations": len(RESPONSES)}
    assert cloud_reward(served, **options)(GROUPS, COMPLETIONS) == pytest.approx(rewards, abs=1e-3)
    assert served.spent == in_process.spent
    waiting = async_cloud_reward(served, **options)(GROUPS, COMPLETIONS)
    assert asyncio.run(waiting) == pytest.approx(rewards, abs=1e-3)
    # A group's rewards have the mean 0 whether or not a completion has a critique, so they are advantages as they are
    assert sum(rewards[: len(RESPONSES)]) == pytest.approx(0, abs=1e-6)


def test_groups_of_one_prompt_stay_apart(in_process):
    """If their size is known, two groups of one prompt get the rewards that each gets alone. All prompts share a call if they can."""
    alone = cloud_reward(in_process, max_new_tokens=8)
    expected = [alone(PROMPTS[row : row + 1] * 4, RESPONSES) for row in (0, 1)]
    calls, score = [], in_process.score
    in_process.score = lambda prompts, *args, **kwargs: calls.append(len(prompts)) or score(prompts, *args, **kwargs)
    size_given = cloud_reward(in_process, max_new_tokens=8, num_generations=4)
    for order, sizes in (((0, 1, 0, 0, 1), [8, 4, 8]), ((0, 1), [8])):
        calls.clear()
        rewards = size_given([PROMPTS[row] for row in order for _ in RESPONSES], RESPONSES * len(order))
        assert rewards == pytest.approx([one for row in order for one in expected[row]], abs=1e-4)
        assert sorted(calls) == sorted(sizes)
    # Without a size, a group is all completions for a prompt, even if they are interleaved with another's
    mixed = alone([PROMPTS[row] for _ in RESPONSES for row in (0, 1)], [text for text in RESPONSES for _ in (0, 1)])
    assert mixed[::2] + mixed[1::2] == pytest.approx(expected[0] + expected[1], abs=1e-4)


def test_one_response_at_a_time(environment, in_process):
    """As verl and OpenRLHF call: each is compared with a typical response."""
    expected = [
        in_process.score([prompt], [response], max_new_tokens=8)[0].reward
        for prompt, response in zip(PROMPTS, RESPONSES, strict=True)
    ]
    assert 0 < in_process.spent[1].responses < len(PROMPTS)

    async def batch():
        calls = (
            verl.compute_score("s", response, None, {"prompt": prompt}, max_new_tokens=8)
            for prompt, response in zip(PROMPTS, RESPONSES, strict=True)
        )
        return await asyncio.gather(*calls)

    assert [found["score"] for found in asyncio.run(batch())] == pytest.approx(expected, abs=1e-3)
    scores = openrlhf._load_scorer().score(PROMPTS, RESPONSES, max_new_tokens=8)
    assert [score.reward for score in scores] == pytest.approx(expected, abs=1e-3)


def test_what_cannot_be_a_cascade(environment, in_process, served, tmp_path):
    urls = openrlhf._variable("CLOUD_REWARD_URL")
    with pytest.raises(ValueError, match="2 addresses separated by spaces"):
        served_scorer(urls)
    assert isinstance(served_scorer("http://a:1, http://b:1"), CLoudClient)
    assert "Authorization" not in served_scorer("http://a:1", "")._headers  # a variable that is set but empty
    with pytest.raises(ValueError, match="1 scorers, but the fit has 2"):
        served_scorer("http://a:1", None, openrlhf._variable("CLOUD_REWARD_CASCADE"))
    with pytest.raises(ValueError, match="each stage writes one greedy critique"):
        asyncio.run(verl.compute_score("s", "r", None, {"prompt": "p"}, num_critiques=2, temperature=1.0))
    with pytest.raises(ValueError, match="verl's router serves one model"):
        asyncio.run(verl.compute_score("s", "r", None, {"prompt": "p"}, "127.0.0.1:1"))
    for options, says in (
        ({"on_unjudgeable": "lowest"}, "compares all completions"),
        ({"temperature": 1.0}, "has its own critique options"),
    ):
        with pytest.raises(ValueError, match=says):
            cloud_reward(served, **options)
    reward = cloud_reward(in_process, num_generations=4)
    with pytest.raises(ValueError, match="not a group of 4"):
        reward(["p", "p"], ["a", "b"])
    tool = [
        {"role": "assistant", "content": None},
        {"role": "tool", "content": "1"},
        {"role": "assistant", "content": "a"},
    ]
    with pytest.raises(ValueError, match="Row 3: the completion has 3 messages"):
        reward(["p"] * 4, ["a", "b", "c", tool])
    environment.delenv("CLOUD_REWARD_URL")
    environment.setenv("CLOUD_REWARD_MODEL", str(tmp_path))
    with pytest.raises(ValueError, match="CLOUD_REWARD_URL must list a reward server for each stage"):
        openrlhf._load_scorer()
