import math
import statistics

import pytest
import torch
from models_for_tests import CRITIQUES, PROMPTS, RESPONSES, make_model, save_language_model
from same_scores import assert_same_scores
from tokenizers_for_tests import make_tokenizer

from cloud_hf import CLoudForRewardModeling, CritiqueFormat, TransformersScorer
from cloud_hf.generation import Sample
from cloud_hf.scores import NotFinite
from cloud_hf.scoring import Score, context_length


BUDGET = 12


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
    """A model that ends its critiques at different lengths, some of them not within the budget."""
    model = make_model(save_language_model(tmp_path_factory.mktemp("talker"), seed=3))
    end = model.config.critique_end_token_id
    with torch.no_grad():
        model.get_output_embeddings().weight[end] *= 1.3
    scores = model.score(PROMPTS * 3, RESPONSES * 2 + RESPONSES[::-1], make_tokenizer("llama3"), max_new_tokens=BUDGET)
    assert {reason for score in scores for reason in score.finish_reasons} == {"stop", "length"}
    return model


def score(model, prompts=PROMPTS, responses=RESPONSES, **kwargs):
    return model.score(prompts, responses, make_tokenizer("llama3"), **{"max_new_tokens": BUDGET, **kwargs})


def full_forward(model, prompt, response, critique_ids):
    critique_format = CritiqueFormat.from_config(model.config, make_tokenizer("llama3"))
    ids = critique_format.encode(prompt, response, list(critique_ids)).input_ids
    return model(input_ids=torch.tensor([ids]), reward_positions=torch.tensor([len(ids) - 1])).logits.item()


def test_the_reward_of_the_generating_pass_is_that_of_a_fresh_full_forward(talker):
    for prompt, response, result in zip(PROMPTS, RESPONSES, score(talker), strict=True):
        assert result.reward == pytest.approx(full_forward(talker, prompt, response, result.critique_ids[0]), abs=1e-5)
        assert len(result.critique_ids[0]) <= BUDGET
        assert (result.finish_reasons == ("length",)) <= (len(result.critique_ids[0]) == BUDGET)


@pytest.mark.parametrize(
    ("model_type", "options"),
    [("mistral", {"sliding_window": 16}), ("gemma2", {"head_dim": 8, "sliding_window": 16}), ("gpt2", {}), ("qwen3", {"head_dim": 8})],
)  # fmt: skip
def test_one_pass_holds_for_other_caches_and_positions(tmp_path, model_type, options):
    model = make_model(save_language_model(tmp_path, model_type, **options))
    for prompt, response, result in zip(PROMPTS, RESPONSES, score(model), strict=True):
        assert result.reward == pytest.approx(full_forward(model, prompt, response, result.critique_ids[0]), abs=1e-5)


def critique_likelihood(model, prompt, response, critique_ids):
    """Mean log-probability of a critique in a fresh pass, with all of its ends as one token."""
    critique_format = CritiqueFormat.from_config(model.config, make_tokenizer("llama3"))
    encoded = critique_format.encode(prompt, response, list(critique_ids))
    with torch.no_grad():
        logits = model.language_model(input_ids=torch.tensor([encoded.input_ids])).logits[
            0, encoded.prefix_length - 1 : -2
        ]
    end, stop_ids = critique_format.end_token_id, critique_format.stop_ids(model.config)
    logits[:, end] = logits[:, [end, *stop_ids]].amax(-1)
    logits[:, stop_ids + critique_format.banned_ids(model.config)] = -torch.inf
    found = logits.log_softmax(-1)[range(len(critique_ids)), list(critique_ids)]
    return found.mean().item() if critique_ids else 0.0


def test_sampled_critiques_have_the_likelihood_of_a_fresh_pass(talker):
    options = {"temperature": 0.7, "num_critiques": 3, "seed": 0}
    for prompt, response, result in zip(PROMPTS, RESPONSES, score(talker, **options), strict=True):
        expected = [critique_likelihood(talker, prompt, response, ids) for ids in result.critique_ids]
        assert result.log_likelihoods == pytest.approx(expected, abs=1e-4)
    assert score(talker)[0].log_likelihoods == ()


def test_nothing_is_read_twice(talker):
    """Per batch one prefill and then single tokens: no second pass over the sequence."""
    widths = []
    hook = talker.trunk.register_forward_hook(
        lambda module, args, kwargs, output: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    score(talker, batch_size=4)
    hook.remove()
    assert widths[0] > 1 and set(widths[1:]) == {1}
    assert len(widths) <= BUDGET + 2


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 5, "num_critiques": 3}])
def test_a_batch_of_n_is_n_batches_of_one(talker, options):
    together = score(talker, batch_size=16, **options)
    alone = [
        score(talker, [prompt], [response], batch_size=1, **options)[0]
        for prompt, response in zip(PROMPTS, RESPONSES, strict=True)
    ]
    backwards = score(talker, PROMPTS[::-1], RESPONSES[::-1], batch_size=3, **options)[::-1]
    for a, b, c in zip(together, alone, backwards, strict=True):
        assert a.critique_ids == b.critique_ids == c.critique_ids
        assert a.finish_reasons == b.finish_reasons == c.finish_reasons
        assert a.rewards == pytest.approx(b.rewards, abs=1e-5)
        assert a.rewards == pytest.approx(c.rewards, abs=1e-5)


def test_the_tokenizers_padding_and_the_bases_generation_config_do_not_matter(talker):
    expected = score(talker)
    tokenizer = make_tokenizer("llama3")
    for pad, side in [(None, "right"), (tokenizer.eos_token, "left"), ("<|eot_id|>", "right")]:
        tokenizer.pad_token, tokenizer.padding_side = pad, side
        talker.generation_config.update(repetition_penalty=1.5, do_sample=True, temperature=2.0)
        assert_same_scores(score(talker), expected)
    tokenizer.pad_token = None


def test_sampling(talker):
    first = score(talker, temperature=1.0, num_critiques=4, seed=1)
    assert_same_scores(first, score(talker, temperature=1.0, num_critiques=4, seed=1))
    other = score(talker, temperature=1.0, num_critiques=4, seed=2)
    assert [result.critiques for result in first] != [result.critiques for result in other]
    for result in first:
        assert len(set(result.critiques)) > 1
        assert result.reward == pytest.approx(statistics.fmean(result.rewards))
        assert result.reward_std == pytest.approx(statistics.pstdev(result.rewards)) and result.reward_std > 0
        assert result.critique == result.critiques[0]


def test_samples_follow_the_models_distribution(talker):
    """First tokens of many samples against the softmax of the logits."""
    tokenizer = make_tokenizer("llama3")
    ids = torch.tensor([CritiqueFormat.from_config(talker.config, tokenizer).encode_prefix("x", "y").input_ids])
    temperature = 4.0
    probabilities = (talker.language_model(ids).logits[0, -1] / temperature).softmax(-1)
    [result] = score(
        talker, ["x"], ["y"], temperature=temperature, num_critiques=2000, max_new_tokens=1, batch_size=2000, seed=0
    )
    firsts = [ids[0] if ids else talker.config.critique_end_token_id for ids in result.critique_ids]
    counts = torch.bincount(torch.tensor(firsts), minlength=len(probabilities)) / 2000
    top = probabilities.topk(5).indices
    error = (probabilities[top] * (1 - probabilities[top]) / 2000).sqrt()
    assert ((counts[top] - probabilities[top]).abs() < 4.5 * error).all()


def test_given_critiques(talker):
    results = score(talker, critiques=CRITIQUES)
    several = score(talker, critiques=[[critique, "Other."] for critique in CRITIQUES])
    critique_format = CritiqueFormat.from_config(talker.config, make_tokenizer("llama3"))
    for index, (result, two) in enumerate(zip(results, several, strict=True)):
        ids = critique_format.encode(PROMPTS[index], RESPONSES[index], CRITIQUES[index]).input_ids
        assert result.reward == pytest.approx(talker(input_ids=torch.tensor([ids])).logits.item(), abs=1e-5)
        assert result.critique == CRITIQUES[index] and two.critiques == (CRITIQUES[index], "Other.")
        assert two.rewards[0] == pytest.approx(result.reward, abs=1e-5)


def test_a_critique_of_exactly_the_budget_is_not_cut(talker):
    ended = next(
        result for result in score(talker, max_new_tokens=200) if result.finish_reasons == ("stop",) and result.critique_ids[0]
    )  # fmt: skip
    length = len(ended.critique_ids[0])
    exact = score(talker, max_new_tokens=length)
    shorter = score(talker, max_new_tokens=length - 1) if length > 1 else []
    assert ended.critique_ids in [result.critique_ids for result in exact]
    for result in exact:
        if result.critique_ids == ended.critique_ids:
            assert result.finish_reasons == ("stop",) and result.reward == pytest.approx(ended.reward, abs=1e-5)
    cut = [result for result in shorter if result.critique_ids[0] == ended.critique_ids[0][:-1]]
    assert cut and all(result.finish_reasons == ("length",) for result in cut)


@pytest.mark.parametrize("only_in_generation_config", [False, True])
def test_the_language_models_own_eos_ends_a_critique_too(talker, monkeypatch, only_in_generation_config):
    expected = score(talker)
    end, eos = talker.config.critique_end_token_id, talker.config.text_config.eos_token_id
    if only_in_generation_config:
        monkeypatch.setattr(talker.generation_config, "eos_token_id", [end, eos])
        monkeypatch.setattr(talker.config.text_config, "eos_token_id", end)
    head = talker.get_output_embeddings().weight
    with torch.no_grad():
        head[[end, eos]] = head[[eos, end]]
    try:
        assert [result.critique_ids for result in score(talker)] == [result.critique_ids for result in expected]
    finally:
        with torch.no_grad():
            head[[end, eos]] = head[[eos, end]]


def test_classic(classic_model):
    results = score(classic_model)
    critique_format = CritiqueFormat.from_config(classic_model.config, make_tokenizer("llama3"))
    for prompt, response, result in zip(PROMPTS, RESPONSES, results, strict=True):
        ids = critique_format.encode(prompt, response).input_ids
        assert result.reward == pytest.approx(classic_model(input_ids=torch.tensor([ids])).logits.item(), abs=1e-5)
        assert (result.critique, result.critiques, result.reward_std) == ("", ("",), 0.0)


def test_predict_reward_is_the_reference_call(talker, classic_model):
    tokenizer = make_tokenizer("llama3")
    rewards, critiques = talker.predict_reward(PROMPTS, RESPONSES, tokenizer, max_tokens=BUDGET)
    assert rewards == pytest.approx([result.reward for result in score(talker)], abs=1e-6)
    assert critiques == [result.critique for result in score(talker)]
    other, _ = talker.predict_reward(
        PROMPTS, RESPONSES, tokenizer, critique_prompt="Judge this: ", temp=0, max_tokens=5
    )
    assert other != rewards
    assert classic_model.predict_reward(PROMPTS, RESPONSES, tokenizer)[1] == [""] * 4


def test_scorer_is_the_models_score(talker):
    scorer = TransformersScorer(talker, make_tokenizer("llama3"), batch_size=2)
    assert [r.critique_ids for r in scorer.score(PROMPTS, RESPONSES, max_new_tokens=BUDGET)] == [
        r.critique_ids for r in score(talker)
    ]


def test_training_mode_is_left_as_it_was(talker):
    talker.train()
    scores = score(talker)
    assert talker.training
    talker.eval()
    assert_same_scores(scores, score(talker))


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"prompts": "What?"}, "`prompts` is 'What"),
        ({"responses": ["one"]}, "4 prompts but 1 responses"),
        ({"prompts": [*PROMPTS[:3], None]}, "Row 3: `prompt` is None"),
        ({"responses": [*RESPONSES[:3], None]}, "Row 3: `response` is of type NoneType"),
        ({"num_critiques": 2}, "needs `temperature` above 0"),
        ({"num_critiques": 0}, "`num_critiques` is 0; it must be an integer"),
        ({"temperature": -1}, "`temperature` is .* it must be a finite number"),
        ({"temperature": float("nan")}, "`temperature` is .* it must be a finite number"),
        ({"batch_size": 0}, "`batch_size` must be at least 1"),
        ({"critiques": "abcd"}, "`critiques` is 'abcd'"),
        ({"critiques": CRITIQUES, "num_critiques": 2, "temperature": 1.0}, "omit `num_critiques`"),
        ({"critiques": ["only one"]}, "1 critiques but 4 responses"),
        ({"critiques": ["a", "b", "c", None]}, "Row 3: `critiques` is"),
        ({"critiques": ["a", "b", "c", []]}, "Row 3: `critiques` is"),
        ({"critiques": ["a", "b", "c", {"d": 1}]}, "Row 3: `critiques` is"),
        ({"critiques": ["a", "b", "c", 5]}, "Row 3: `critiques` is"),
        ({"prompts": ["x", "x", "long " * 600, "x"]}, r"Row 2: \d+ tokens .* context holds 512 \(1 of 4"),
        ({"max_new_tokens": 500}, r"context holds 512"),
    ],
)
def test_unusable_arguments_are_refused_before_anything_runs(talker, kwargs, says):
    calls = []
    hook = talker.trunk.register_forward_hook(lambda *args: calls.append(1))
    with pytest.raises(ValueError, match=says):
        score(talker, **kwargs)
    hook.remove()
    assert not calls


def test_a_classic_model_asked_for_critiques_says_so(classic_model):
    for options in ({"num_critiques": 2, "temperature": 1.0}, {"critiques": CRITIQUES}, {"critique_prompt": "Judge:"}):
        with pytest.raises(ValueError, match="classic reward model"):
            score(classic_model, **options)


def test_a_context_of_another_name_is_a_limit_too(tmp_path):
    model = make_model(save_language_model(tmp_path, "gpt2", max_position_embeddings=128))
    with pytest.raises(ValueError, match="context holds 128"):
        score(model, ["word " * 100], ["x"])


def test_dropped_thinking_is_warned_of(tmp_path, caplog):
    model = make_model(save_language_model(tmp_path, family="qwen3"))
    model.score(["x"], ["<think>a</think>b"], make_tokenizer("qwen3"), critiques=["ok"])
    assert "changes 1 of 1 responses" in caplog.text


def test_no_rows_give_no_scores(talker):
    assert score(talker, [], []) == []


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_reward_that_is_not_finite_is_refused(bad):
    with pytest.raises(NotFinite, match="has rewards that are NaN or infinite"):
        Score.of([Sample(1.0), Sample(bad)])
    with pytest.raises(NotFinite):
        Score(bad, "", (1.0,), ("",), 0.0, ("stop",))


SCHEMES = {
    "llama": ("llama", {}),
    "linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}),
    "dynamic": ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}),
    "yarn": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "rope_theta": 1e4,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "learned": ("gpt2", {}),
    "alibi": ("bloom", {}),
    "sliding": ("gemma2", {"head_dim": 8, "sliding_window": 16}),
}


def longrope_model(folder, original):
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": original, **factors}
    return make_model(
        save_language_model(
            folder, "phi3", rope_parameters=rope, original_max_position_embeddings=original, pad_token_id=0
        )
    )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_size_of_the_batch_changes_no_reward(tmp_path, scheme):
    model_type, options = SCHEMES[scheme]
    model = make_model(save_language_model(tmp_path, model_type, **options))
    prompts, responses = PROMPTS * 2, [*RESPONSES, *(f"{text} {'and so on ' * 8}" for text in RESPONSES)]
    alone, *others = (score(model, prompts, responses, batch_size=size) for size in (1, 3, 8))
    for scores in others:
        assert [one.reward for one in scores] == pytest.approx([one.reward for one in alone], abs=1e-4)


def test_longrope_is_used_up_to_its_switch_and_refused_beyond(tmp_path):
    """Beyond it, the factors of all sequences depend on the longest one of the batch, or on how far a critique has come."""
    model = longrope_model(tmp_path, 200)
    alone, *others = (score(model, batch_size=size) for size in (1, 3, 4))
    for scores in others:
        assert [one.reward for one in scores] == pytest.approx([one.reward for one in alone], abs=1e-4)
    for prompt, response, result in zip(PROMPTS, RESPONSES, alone, strict=True):
        assert result.reward == pytest.approx(full_forward(model, prompt, response, result.critique_ids[0]), abs=1e-4)
    assert context_length(model.config) == 200
    for options in ({"max_new_tokens": 150}, {"critiques": ["long " * 150] * 4}):
        with pytest.raises(ValueError, match=r"Row 0: .* context holds 200 .*longrope\) switch at that length"):
            score(model, **options)


def test_hidden_text_of_a_response_is_told(tmp_path, caplog):
    """The chat template of Qwen 3 shows only what follows a `</think>`."""
    make_model(save_language_model(tmp_path / "base", family="qwen3")).save_pretrained(tmp_path / "model")
    responses = ["HARMFUL ADVICE</think>It is 42.", "It is 42."]
    critiques = {"given": ["Good."] * 2, "written": None}
    for given in critiques.values():
        rewards = {}
        for keep in (False, True):
            model = CLoudForRewardModeling.from_pretrained(tmp_path / "model", keep_thinking=keep).eval()
            scores = model.score(["x"] * 2, responses, make_tokenizer("qwen3"), max_new_tokens=BUDGET, critiques=given)
            assert [one.response_changed for one in scores] == [not keep, False]
            rewards[keep] = [one.reward for one in scores]
        assert "changes 1 of 2 responses" in caplog.text
        assert rewards[False][0] == pytest.approx(rewards[False][1], abs=1e-4)
        assert rewards[True][0] != pytest.approx(rewards[True][1], abs=1e-3)
