"""Rewards read while critiques are written (`read_every`), and critiques that end once they are stable."""

from dataclasses import replace

import pytest
import torch
from models_for_tests import PROMPTS, RESPONSES, make_model, save_language_model
from same_scores import assert_same_scores
from tokenizers_for_tests import make_tokenizer

from cloud_hf import CritiqueFormat, TransformersScorer
from cloud_hf.scores import STABLE_READS, Sampling


OPTIONS = {"temperature": 1.0, "seed": 7, "max_new_tokens": 12, "num_critiques": 3}


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
    model = make_model(save_language_model(tmp_path_factory.mktemp("talker"), seed=3))
    with torch.no_grad():
        model.get_output_embeddings().weight[model.config.critique_end_token_id] *= 2.0
    return model


def score(model, batch_size=16, **kwargs):
    scorer = TransformersScorer(model, make_tokenizer("llama3"), batch_size)
    return scorer.score(PROMPTS, RESPONSES, **{**OPTIONS, **kwargs})


def without_partial(scores):
    return [replace(score, partial_rewards=()) for score in scores]


def fresh_rewards(model, score, place, read_every):
    """The rewards of a response's critiques from forward passes over their cut ids."""
    tokenizer = make_tokenizer("llama3")
    critique_format = CritiqueFormat.from_config(model.config, tokenizer)
    prefix = critique_format.encode_prefix(PROMPTS[place], RESPONSES[place]).input_ids
    found = []
    for ids, reward in zip(score.critique_ids, score.rewards, strict=True):
        cuts = [[*prefix, *ids[:end]] for end in range(read_every, len(ids) + 1, read_every)]
        passes = [model(torch.tensor([cut]), reward_positions=torch.tensor([len(cut) - 1])) for cut in cuts]
        found.append([*(output.logits.item() for output in passes), reward])
    return found


@pytest.mark.parametrize("read_every", [1, 4])
def test_partial_rewards_are_those_of_the_cut_critiques(talker, read_every):
    plain, scores = score(talker), score(talker, read_every=read_every)
    assert_same_scores(without_partial(scores), plain)
    assert len({len(rewards) for one in scores for rewards in one.partial_rewards}) > 2
    for place, one in enumerate(scores):
        assert tuple(rewards[-1] for rewards in one.partial_rewards) == one.rewards
        for rewards, fresh in zip(one.partial_rewards, fresh_rewards(talker, one, place, read_every), strict=True):
            assert rewards == pytest.approx(fresh, abs=1e-5)
    small = score(talker, 5, read_every=read_every)
    assert_same_scores(without_partial(small), plain, abs=1e-5)
    for one, other in zip(small, scores, strict=True):
        for rewards, others in zip(one.partial_rewards, other.partial_rewards, strict=True):
            assert rewards == pytest.approx(others, abs=1e-5)


def test_given_critiques_are_read_in_one_pass(talker):
    passes = []
    hook = talker.trunk.register_forward_hook(lambda *_: passes.append(None))
    given = [["", "Short.", "A critique that is a bit longer than the others."]] * len(PROMPTS)
    scores = score(talker, critiques=given, read_every=3, num_critiques=1)
    hook.remove()
    assert len(passes) == 1
    for place, one in enumerate(scores):
        for rewards, fresh in zip(one.partial_rewards, fresh_rewards(talker, one, place, 3), strict=True):
            assert rewards == pytest.approx(fresh, abs=1e-5)
    assert [len(rewards) for rewards in scores[0].partial_rewards][:1] == [1]


def test_a_critique_ends_where_its_reward_is_stable(talker):
    plain = score(talker, read_every=2)
    for limit in (1e-9, 5.0, 1e3):
        stopped = score(talker, read_every=2, stop_when_stable=limit)
        for one, other in zip(stopped, plain, strict=True):
            pieces = (one.critique_ids, one.partial_rewards, one.finish_reasons)
            others = (other.critique_ids, other.partial_rewards, other.finish_reasons)
            for ids, rewards, reason, all_ids, all_rewards, plain_reason in zip(*pieces, *others, strict=True):
                ends = [
                    end
                    for end in range(STABLE_READS, len(all_rewards))
                    if max(seen := all_rewards[end - STABLE_READS : end]) - min(seen) < limit
                ]
                expected = min([2 * end for end in ends], default=len(all_ids))
                assert ids == all_ids[:expected] and rewards[:-1] == pytest.approx(all_rewards[: len(rewards) - 1])
                assert reason == (plain_reason if expected == len(all_ids) and plain_reason == "stop" else
                                  "stable" if ends else plain_reason)  # fmt: skip
    assert {reason for one in stopped for reason in one.finish_reasons} == {"stop", "stable"}


def test_what_cannot_be_read_is_refused(talker, tmp_path):
    for options, message in (
        ({"read_every": 0}, "`read_every` is 0"),
        ({"read_every": 2, "stop_when_stable": 0.0}, "`stop_when_stable` is 0.0"),
        ({"stop_when_stable": 0.1}, "needs `read_every`"),
    ):
        with pytest.raises(ValueError, match=message):
            Sampling(**options)
    options = {"read_every": 2, "num_critiques": 1}
    with pytest.raises(ValueError, match="always scored in full"):
        score(talker, critiques=["Fine."] * len(PROMPTS), stop_when_stable=0.1, **options)
    base = save_language_model(tmp_path)
    with pytest.raises(ValueError, match="writes no critiques, so it has no partial rewards"):
        score(make_model(base, critique=False), **options)
    with pytest.raises(ValueError, match="reads the reward from the critique's text after it is written"):
        score(make_model(base, format="reference"), **options)
