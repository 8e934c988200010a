"""A cascade decides as counted by hand, spends only on contenders, and its scorer does what the recorded rewards say."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit, logit
from table_scorer import TableScorer

from cloud_hf.cascade import CascadeFit, CascadeScorer, CascadeStage, StageFit, run_cascade
from cloud_hf.scores import Sample, Score


FIT = CascadeFit((StageFit(1.0), StageFit(2.0)), (0.9,))


def run(rewards, fit=FIT, one_at_a_time=(False, False)):
    """Rewards by stage and prompt."""
    return run_cascade(
        fit, one_at_a_time, list(map(len, rewards[0])), lambda stage, picks: [rewards[stage][a][b] for a, b in picks]
    )


def test_pairs_are_scored_again_where_the_margin_leaves_doubt():
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=(2, 200, 2)) * 3
    for threshold in (0.5, 0.8, 0.99, 1.0):
        found = run(rewards, replace(FIT, thresholds=(threshold,)))
        margins = rewards[:, :, 0] - rewards[:, :, 1]
        doubtful = expit(np.abs(margins[0])) < threshold
        assert [one.asked[1] for one in found] == [[0, 1] if again else [] for again in doubtful]
        odds = np.where(doubtful, 2 * margins[1], margins[0])
        assert [one.rewards for one in found] == pytest.approx(np.stack([odds, -odds], axis=1))
        assert [one.confidence for one in found] == pytest.approx(expit(np.abs(odds)))


def test_of_many_candidates_the_contenders_are_scored():
    rng = np.random.default_rng(1)
    rewards = rng.normal(size=(2, 100, 6)) * 3
    for cheap, full, one in zip(*rewards, run(rewards), strict=True):
        contenders = [place for place in range(6) if cheap.max() - cheap[place] < logit(0.9)]
        asked = one.asked[1]
        assert asked == [] if len(contenders) == 1 else asked[: len(contenders)] == contenders
        # Others follow only where the new leader was not far ahead of them
        assert len(asked) == len(contenders) or len(contenders) == 1 or one.leader != cheap.argmax()
        assert len(one.rewards) == 6 and sum(one.rewards) == pytest.approx(0)
        if len(contenders) == 6:
            assert one.leader == full.argmax()
        if len(contenders) == 1:
            assert one.leader == cheap.argmax()


def test_one_critique_may_settle_a_pair():
    """Known to be far better or far worse than a typical response, the first one decides; otherwise the other is scored, too."""
    fit = replace(FIT, stages=(StageFit(1.0), StageFit(2.0, one_slope=1.0, one_center=5.0)))
    cheap = [[0.5, 0.0]] * 3
    full = [[9.0, 0.0], [1.0, 0.0], [5.5, 9.0]]
    found = run([cheap, full], fit, (False, True))
    assert [one.asked[1] for one in found] == [[0], [0], [0, 1]]
    assert [one.leader for one in found] == [0, 1, 1]
    assert found[0].rewards == pytest.approx([4.5, -4.5])  # 9 - 5 of the critique, 0.5 of the cheap margin
    everything = run([cheap, full], replace(fit, thresholds=(1.0,)), (False, True))
    assert all(sorted(one.asked[1]) == [0, 1] for one in everything)


def test_a_response_that_is_alone_is_compared_with_a_typical_one():
    fit = CascadeFit((StageFit(1.0, one_slope=2.0, one_center=1.0), StageFit(1.0, one_slope=1.0)), (0.9,))
    found = run([[[3.0], [1.5], [-1.0]], [[7.0]] * 3], fit)
    assert [one.rewards for one in found] == [pytest.approx([odds]) for odds in (4.0, 8.0, -4.0)]
    assert [one.asked for one in found] == [[[0], []], [[0], [0]], [[0], []]]


class Critic(TableScorer):
    def score(self, prompts, responses, **options):
        scores = super().score(prompts, responses, **options)
        return [replace(score, critique_ids=((1, 2, 3),) * len(score.rewards)) for score in scores]


def test_the_scorer_groups_by_prompt_and_counts_what_it_spends():
    cheap, full = (
        TableScorer({"a": 0.1, "b": 0.0, "c": 5.0, "d": 0.0}),
        Critic(dict.fromkeys("abcd", 1.0) | {"b": 4.0}),
    )
    scorer = CascadeScorer([cheap, CascadeStage(full, 4, 0.7)], FIT)
    told = {}
    scores = scorer.score(
        ["p", "q", "p", "q"], ["a", "c", "b", "d"], max_new_tokens=9, seed=3, on_score=told.__setitem__
    )
    assert [call[1] for call in full.calls] == [["a", "b"]]
    assert full.calls[0][2] == {"max_new_tokens": 9, "num_critiques": 4, "temperature": 0.7, "seed": 3}
    assert [score.reward for score in scores] == pytest.approx([-6.0, 5.0, 6.0, -5.0])
    assert [(one.responses, one.tokens) for one in scorer.spent] == [(4, 0), (2, 6)]
    assert scores[2].rewards == pytest.approx([6.0]) and scores[0].critique_ids == ((1, 2, 3),)
    assert told == dict(enumerate(scores))


def test_every_critique_is_shifted_alike():
    class Sampler:
        def score(self, prompts, responses, **options):
            return [Score.of([Sample(1.0, "x"), Sample(3.0, "y")]) for _ in responses]

    scores = CascadeScorer([TableScorer({"a": 1.0, "b": 0.9}), Sampler()], FIT).score(["p", "p"], ["a", "b"])
    assert (
        scores[0].rewards == pytest.approx([-1.0, 1.0])
        and scores[0].reward_std == 1.0
        and scores[0].critiques == ("x", "y")
    )


def test_the_fit_is_saved(tmp_path):
    FIT.save(tmp_path / "cascade.json")
    assert CascadeFit.load(tmp_path / "cascade.json") == FIT
    with pytest.raises(ValueError, match=r"There is no cascade fit at .*none\.json"):
        CascadeFit.load(tmp_path / "none.json")
    for text in ("{}", "[", '{"version": 2}'):
        (tmp_path / "cascade.json").write_text(text)
        with pytest.raises(ValueError, match="is not a cascade fit"):
            CascadeFit.load(tmp_path / "cascade.json")


def test_what_cannot_be_done():
    with pytest.raises(ValueError, match=r"0\.4; a threshold is a probability from 0\.5 to 1"):
        replace(FIT, thresholds=(0.4,))
    with pytest.raises(ValueError, match="one for each stage but the first"):
        replace(FIT, thresholds=())
    with pytest.raises(ValueError, match="1 scorers, but the fit has 2"):
        CascadeScorer([TableScorer({})], FIT)
    scorer = CascadeScorer([TableScorer({}), TableScorer({})], FIT)
    for options in ({"num_critiques": 2, "temperature": 1.0}, {"critiques": ["x"]}):
        with pytest.raises(ValueError, match="has its own critique options"):
            scorer.score(["p"], ["a"], **options)
