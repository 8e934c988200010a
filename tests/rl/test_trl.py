"""TRL's GRPO and RLOO trainers call our reward functions and get what the model's own scores say."""

import asyncio
import logging
import math
import statistics
from contextlib import nullcontext
from dataclasses import replace

import pandas as pd
import pytest
from datasets import Dataset
from models_for_tests import PROMPTS, RESPONSES, make_model, save_language_model
from tokenizers_for_tests import make_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.chat_template_utils import add_response_schema, parse_response
from trl.trainer.utils import get_callable_name, is_async_callable

from cloud_hf import CritiqueFormat
from cloud_hf.rl.trl import async_cloud_reward, cloud_reward, normalize_by_group
from cloud_hf.scoring import Score, TransformersScorer
from cloud_hf.serving.client import CLoudClient


CHAT = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]


class ThreadClient:
    """A real scorer behind the client's async interface."""

    def __init__(self, scorer):
        self.scorer = scorer

    async def ascore(self, prompts, responses, **options):
        return await asyncio.to_thread(self.scorer.score, prompts, responses, **options)


class LengthScorer:
    """Rewards by length, critiques that repeat the response, and a limit on what it takes. Remembers its batches."""

    def __init__(self, limit=100):
        self.limit = limit
        self.batches = []

    def score(self, prompts, responses, **options):
        self.batches.append(len(responses))
        for row, response in enumerate(responses):
            if len(response) > self.limit:
                raise ValueError(f"Row {row}: {len(response)} tokens are too many.")
        return [
            Score(float(len(response)), response, (float(len(response)),), (response,), 0.0, ("stop",))
            for response in responses
        ]


def settings(config_class, folder, **options):
    return config_class(
        output_dir=str(folder), per_device_train_batch_size=4, num_generations=4, max_completion_length=6, max_steps=2,
        logging_steps=1, log_completions=True, report_to="none", use_cpu=True, bf16=False, save_strategy="no",
        gradient_checkpointing=False, **options,
    )  # fmt: skip


def train(trainer_class, config, base_folder, reward_funcs, prompts=CHAT):
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    tokenizer.pad_token = tokenizer.eos_token
    trainer = trainer_class(
        AutoModelForCausalLM.from_pretrained(base_folder),
        reward_funcs=reward_funcs,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": prompts, "label": ["a"] * len(prompts)}),
        processing_class=tokenizer,
    )
    trainer.train()
    return trainer


def completions_table(folder):
    return pd.concat(pd.read_parquet(path) for path in sorted(folder.glob("completions/*.parquet")))


def test_grpo_uses_the_models_own_scores(base_folder, scorer, tmp_path):
    trainer = train(GRPOTrainer, settings(GRPOConfig, tmp_path), base_folder, cloud_reward(scorer, max_new_tokens=8))
    table = completions_table(tmp_path)
    assert len(table) == 8
    scores = check_table(table, scorer)
    logs = trainer.state.log_history[0]
    assert logs["cloud_reward/unjudgeable"] == 0
    cut = [score.finish_reasons[0] == "length" for score in scores[:4]]
    assert logs["cloud_reward/critiques_cut"] == pytest.approx(statistics.fmean(cut))


def test_rloo_uses_the_models_own_scores(base_folder, scorer, tmp_path):
    """This trainer shows the table and sends it to trackers, but writes no file."""
    trainer = train(RLOOTrainer, settings(RLOOConfig, tmp_path), base_folder, cloud_reward(scorer, max_new_tokens=8))
    logs = trainer._logs
    columns = {"prompt": logs["prompt"], "completion": logs["completion"], **logs["rewards"], **logs["extra"]}
    check_table(pd.DataFrame({name: list(values) for name, values in columns.items()}), scorer)


@pytest.mark.parametrize(
    ("trainer_class", "config_class"), [(GRPOTrainer, GRPOConfig), (RLOOTrainer, RLOOConfig)], ids=["grpo", "rloo"]
)
def test_a_reward_model_by_its_path(
    base_folder, model, classic_model, tokenizer, tmp_path, trainer_class, config_class
):
    for kind, reward_model in (("classic", classic_model), ("cloud", model)):
        reward_model.save_pretrained(tmp_path / kind)
        tokenizer.save_pretrained(tmp_path / kind)
    trainer = train(trainer_class, settings(config_class, tmp_path), base_folder, str(tmp_path / "classic"))
    logs = trainer._logs
    responses = [completion[0]["content"] for completion in logs["completion"]]
    scores = classic_model.score([list(prompt) for prompt in logs["prompt"]], responses, tokenizer)
    assert list(logs["rewards"]["classic"]) == pytest.approx([score.reward for score in scores], abs=1e-5)
    with pytest.raises(
        ValueError, match=r"writes a critique before it scores.*pass `cloud_hf\.rl\.trl\.cloud_reward`"
    ):
        train(trainer_class, settings(config_class, tmp_path), base_folder, str(tmp_path / "cloud"))


def check_table(table, scorer):
    prompts = [list(prompt) for prompt in table["prompt"]]
    responses = [completion[0]["content"] for completion in table["completion"]]
    scores = scorer.score(prompts, responses, max_new_tokens=8)
    assert table["cloud_reward_critique"].tolist() == [score.critique for score in scores]
    assert table["cloud_reward"].tolist() == pytest.approx([score.reward for score in scores], abs=1e-5)
    assert statistics.pstdev(table["cloud_reward"]) > 0.01
    return scores


def test_async_function_in_a_trainer(base_folder, scorer, tmp_path):
    reward = async_cloud_reward(ThreadClient(scorer), max_new_tokens=8, normalize="group", name="judge")
    assert is_async_callable(reward)
    train(GRPOTrainer, settings(GRPOConfig, tmp_path), base_folder, [reward], PROMPTS)
    table = completions_table(tmp_path)
    scores = scorer.score(table["prompt"].tolist(), table["completion"].tolist(), max_new_tokens=8)
    expected = normalize_by_group([score.reward for score in scores], table["prompt"].tolist(), 4)
    assert table["judge"].tolist() == pytest.approx(expected, abs=1e-3)
    assert table["judge_critique"].tolist() == [score.critique for score in scores]


def test_unjudgeable_completions_do_not_end_a_run(base_folder, scorer, tmp_path, caplog):
    """A context that holds some completions with their critique and others not."""
    critique_format = CritiqueFormat.from_config(scorer.model.config, scorer.tokenizer)
    lengths = [len(critique_format.encode_prefix(prompt, "x").input_ids) for prompt in CHAT]
    prompts = [CHAT[lengths.index(min(lengths))], CHAT[lengths.index(max(lengths))]]
    scorer.model.config.text_config.max_position_embeddings = (min(lengths) + max(lengths)) // 2 + 40
    reward = cloud_reward(scorer, max_new_tokens=40, on_unjudgeable="none")
    config = settings(GRPOConfig, tmp_path, gradient_accumulation_steps=2)
    with caplog.at_level(logging.WARNING, "cloud_hf.rl.trl"):
        trainer = train(GRPOTrainer, config, base_folder, reward, prompts)
    table = completions_table(tmp_path)
    unjudged = table["cloud_reward"].isna()
    assert 0 < unjudged.sum() < len(table)
    assert table["cloud_reward_critique"].isna().tolist() == unjudged.tolist()
    assert (table["advantage"][unjudged] == 0).all()
    assert 0 < trainer.state.log_history[0]["cloud_reward/unjudgeable"] < 1
    assert "could not be judged" in caplog.text
    assert "context holds" in caplog.text
    assert math.isfinite(trainer.state.log_history[-1]["train_loss"])


# ------------------------------------------------------------------------------------------------- called directly


def call(function, prompts, completions, **columns):
    """As TRL calls it."""
    extra, metrics = {}, {}
    result = function(
        prompts=prompts, completions=completions, completion_ids=[[1]] * len(prompts), trainer_state=None,
        log_extra=extra.__setitem__, log_metric=metrics.__setitem__, **columns,
    )  # fmt: skip
    return (asyncio.run(result) if is_async_callable(function) else result), extra, metrics


def both(scorer, **options):
    return [cloud_reward(scorer, **options), async_cloud_reward(ThreadClient(scorer), **options)]


def test_messages_and_strings_are_judged_alike(scorer):
    expected = [score.reward for score in scorer.score(PROMPTS, RESPONSES, max_new_tokens=8)]
    messages = [[{"role": "assistant", "content": response}] for response in RESPONSES]
    for function in both(scorer, max_new_tokens=8):
        assert call(function, PROMPTS, RESPONSES)[0] == pytest.approx(expected, abs=1e-5)
        assert call(function, CHAT, messages, label=["a"] * 4)[0] == pytest.approx(expected, abs=1e-5)


def test_client_of_a_server(reward_server, scorer):
    client = CLoudClient(f"http://{reward_server}")
    responses = [*RESPONSES[:3], "long " * 1000]
    expected = [score.reward for score in scorer.score(PROMPTS[:3], RESPONSES[:3], max_new_tokens=8)]
    for function in (
        cloud_reward(client, max_new_tokens=8, on_unjudgeable="none"),
        async_cloud_reward(client, max_new_tokens=8, on_unjudgeable="none"),
    ):
        rewards, _, metrics = call(function, PROMPTS, responses)
        assert rewards[:3] == pytest.approx(expected, abs=1e-4)
        assert rewards[3] is None and metrics["cloud_reward/unjudgeable"] == 1 / 4


def test_last_message_is_judged_in_its_context():
    scorer = LengthScorer()
    seen = []
    scorer.score = lambda prompts, responses, **options: (
        seen.extend(zip(prompts, responses, strict=True)) or LengthScorer().score(prompts, responses)
    )
    user, tool = {"role": "user", "content": "Weather?"}, {"role": "tool", "content": "sun"}
    call_message = {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": {}}}]}
    answer = {"role": "assistant", "content": "It shines."}
    call(cloud_reward(scorer), [[user]], [[call_message, tool, answer]])
    assert seen == [([user, call_message, tool], "It shines.")]
    seen.clear()
    scorer.score = lambda prompts, responses, **options: (
        seen.extend(responses) or LengthScorer().score(prompts, [response["role"] for response in responses])
    )
    thoughtful = {**answer, "reasoning_content": "It may rain."}
    function = cloud_reward(scorer, judged_part=lambda text: text.split("</think>")[-1].upper())
    call(function, [[user], [user]], [[call_message], [{**call_message, **thoughtful}]])
    assert seen == [{**call_message, "content": None}, {**call_message, "content": "\n\nIT SHINES."}]
    with pytest.raises(ValueError, match=r"Row 0.*not an assistant message"):
        call(cloud_reward(scorer), [[user]], [[call_message, tool]])


def test_an_assistant_message_before_the_response():
    """GRPO starts a new turn after a prompt's assistant message, so the two are not one text. Online DPO continues the message."""
    user, start = {"role": "user", "content": "Weather?"}, {"role": "assistant", "content": "It "}
    answer = [{"role": "assistant", "content": "shines."}]
    for function in both(LengthScorer()):
        with pytest.raises(ValueError, match=r"Row 1: the response follows an assistant message.*End the prompt"):
            call(function, [[user], [user, start]], [answer, answer])


def test_thinking_that_trl_parsed_is_judged_like_text(tmp_path):
    """Also in the context, which is the turn that called a tool."""
    policy = add_response_schema(make_tokenizer("qwen3"))

    def parse(text):
        prefix = policy.apply_chat_template(CHAT[0], add_generation_prompt=True, return_dict=False)
        return parse_response(policy, policy(text + "<|im_end|>")["input_ids"], prefix=prefix)

    thinking = "<think>\nOr is it 41?\n</think>\n\n"
    called = parse(thinking + 'I add.\n<tool_call>\n{"name": "add", "arguments": {"a": 12}}\n</tool_call>')
    tool = {"role": "tool", "name": "add", "content": "42"}
    answer = parse(thinking + "It is 42.")
    assert called["reasoning_content"] == answer["reasoning_content"] == "Or is it 41?"
    plain_call = {"role": "assistant", "content": thinking + "I add.", "tool_calls": called["tool_calls"]}
    plain_answer = {"role": "assistant", "content": thinking + "It is 42."}
    save_language_model(tmp_path, family="qwen3")
    for keep in (False, True):
        scorer = TransformersScorer(make_model(tmp_path, keep_thinking=keep), make_tokenizer("qwen3"))
        for parsed, text in (
            ([answer], [plain_answer]),
            ([called, tool, answer], [plain_call, tool, plain_answer]),
            ([called], [plain_call]),
        ):
            for function in both(scorer, max_new_tokens=8):
                [[expected], _, _] = call(function, CHAT[:1], [text])
                [[reward], _, metrics] = call(function, CHAT[:1], [parsed])
                assert reward == pytest.approx(expected, abs=1e-5)
                assert metrics["cloud_reward/response_changed"] == (not keep)
            for function in both(scorer, max_new_tokens=8, on_response_changed="error"):
                with nullcontext() if keep else pytest.raises(ValueError, match="hides or changes text in 1 of 1"):
                    call(function, CHAT[:1], [parsed])


def test_content_parts_are_judged_as_text(scorer):
    def parts(text):
        return [{"role": "assistant", "content": [{"type": "text", "text": text}]}]

    for function in both(scorer, max_new_tokens=8, judged_part=str.upper):
        expected = call(function, CHAT[:1], ["IT IS 42."])[0]
        assert call(function, CHAT[:1], [parts("It is 42.")])[0] == pytest.approx(expected, abs=1e-5)
        image = [{"role": "assistant", "content": [{"type": "image"}]}]
        with pytest.raises(ValueError, match=r"Row 0: an assistant message contains the content part.*text only"):
            call(function, CHAT[:1], [image])


def test_a_completion_without_messages():
    for function in both(LengthScorer()):
        with pytest.raises(ValueError, match=r"Row 1: the completion has no messages; give text"):
            call(function, ["p", "p"], ["y", []])


def test_text_that_the_reward_model_is_not_shown_is_told(caplog):
    class Hiding(LengthScorer):
        def score(self, prompts, responses, **options):
            return [
                replace(one, response_changed="</think>" in one.critique) for one in super().score(prompts, responses)
            ]

    texts = ["Fine.", "Bad advice.</think>Fine."]
    for function in both(Hiding()):
        rewards, _, metrics = call(function, ["p"] * 2, texts)
        assert rewards == [5.0, 24.0] and metrics["cloud_reward/response_changed"] == 0.5
        assert "hides or changes text in 1 of 2 responses" in caplog.text
    for function in both(Hiding(), on_response_changed="error"):
        with pytest.raises(ValueError, match="hides or changes text in 1 of 2 responses"):
            call(function, ["p"] * 2, texts)


def test_what_cannot_be_judged_never_pays_with_the_lowest_reward():
    scorer = LengthScorer(limit=20)
    for function in both(scorer, on_unjudgeable="lowest"):
        assert call(function, ["p"] * 3, ["y" * 30, "yyy", "yyyyy"])[0] == [3.0, 3.0, 5.0]
        assert call(function, ["p"] * 3, ["y" * 30, "yyyy", "yyyyy"])[0] == [3.0, 4.0, 5.0]
        with pytest.raises(ValueError, match="No completion"):
            call(cloud_reward(scorer, on_unjudgeable="lowest"), ["p"], ["y" * 30])


def test_only_the_judged_part_is_judged(scorer):
    thinking = [f"<think>Let me see: {row}</think>{response}" for row, response in enumerate(RESPONSES)]
    expected = [score.reward for score in scorer.score(PROMPTS, RESPONSES, max_new_tokens=8)]
    for function in both(scorer, max_new_tokens=8, judged_part=lambda text: text.split("</think>")[-1]):
        assert call(function, PROMPTS, thinking)[0] == pytest.approx(expected, abs=1e-5)


def test_names():
    assert get_callable_name(cloud_reward(LengthScorer())) == "cloud_reward"
    assert get_callable_name(async_cloud_reward(None, name="judge")) == "judge"


@pytest.mark.parametrize("bad", [(5,), (0,), (7,), (2, 3, 6), range(7)])
def test_only_bad_completions_lose_their_reward(bad, caplog):
    scorer = LengthScorer(limit=20)
    for function in both(scorer, on_unjudgeable="none"):
        texts = ["y" * (30 if row in bad else row + 1) for row in range(8)]
        expected = [None if row in bad else row + 1.0 for row in range(8)]
        rewards, extra, metrics = call(function, ["p"] * 8, texts)
        assert rewards == expected
        assert [text is None for text in extra["cloud_reward_critique"]] == [row in bad for row in range(8)]
        assert metrics["cloud_reward/unjudgeable"] == len(bad) / 8
        assert f"{len(bad)} of 8 completions" in caplog.text
        # Once something has been judged, a batch of only bad completions does not stop the run
        assert call(function, ["p"] * 2, ["y" * 30] * 2)[0] == [None, None]


def test_good_batches_are_scored_at_once():
    scorer = LengthScorer()
    call(cloud_reward(scorer, on_unjudgeable="none"), ["p"] * 8, ["y"] * 8)
    assert scorer.batches == [8]


def test_errors_name_the_completion_by_default():
    for function in both(LengthScorer(limit=3)):
        with pytest.raises(ValueError, match=r"on_unjudgeable.*Row 1: 9 tokens"):
            call(function, ["p"] * 2, ["y", "y" * 9])


def test_wrong_settings_are_not_taken_for_bad_completions(scorer):
    """A critique that can never fit: every completion fails, and the run must not continue without rewards."""
    for function in both(scorer, max_new_tokens=5000, on_unjudgeable="none"):
        with pytest.raises(ValueError, match=r"No completion has been judged so far.*context holds 512"):
            call(function, PROMPTS, RESPONSES)


def test_other_errors_are_not_hidden():
    class Broken:
        def score(self, *args, **kwargs):
            raise ConnectionError("no server")

    for function in both(Broken(), on_unjudgeable="none"):
        with pytest.raises(ConnectionError):
            call(function, ["p"], ["y"])


def test_several_critiques(scorer):
    options = {"num_critiques": 3, "temperature": 1.0, "seed": 0, "max_new_tokens": 8}
    rewards, _, metrics = call(cloud_reward(scorer, **options), PROMPTS, RESPONSES)
    scores = scorer.score(PROMPTS, RESPONSES, **options)
    assert rewards == pytest.approx([score.reward for score in scores], abs=1e-5)
    spread = statistics.fmean(score.reward_std for score in scores)
    assert metrics["cloud_reward/spread_of_critiques"] == pytest.approx(spread, abs=1e-4)


def test_normalization_by_group():
    prompts = ["a"] * 4 + ["b"] * 3 + ["c"] + ["a"] * 2
    rewards = [1.0, 2.0, None, 6.0, 5.0, 5.0, 5.0 + 1e-6, 7.0, None, None]
    normalized = normalize_by_group(rewards, prompts)
    group = [normalized[0], normalized[1], normalized[3]]
    assert statistics.fmean(group) == pytest.approx(0)
    assert statistics.pstdev(group) == pytest.approx(1)
    assert group == sorted(group)
    assert normalized[2] is None
    assert normalized[4:] == [0, 0, 0, 0, None, None]
    # Online DPO sends all prompts twice
    chats = [[{"role": "user", "content": prompt}] for prompt in "abab"]
    assert normalize_by_group([1.0, 20.0, 3.0, 10.0], chats) == [-1, 1, 1, -1]
    # Several groups of one prompt: only the size of a group tells
    assert normalize_by_group([1.0, 3.0, 10.0, 30.0], ["a"] * 4, 2) == [-1, 1, -1, 1]
    for size in (3, 4):
        with pytest.raises(ValueError, match=f"not a group of {size}.*`num_generations_eval` to {size}, or leave out"):
            normalize_by_group([1.0] * 6, ["a", "a", "b", "b", "c", "c"], size)


def test_groups_of_one_completion_are_told(caplog):
    assert normalize_by_group([1.0, 3.0, 5.0], ["a", "a", "b"]) == [-1, 1, 0] and not caplog.text
    assert normalize_by_group([1.0, 3.0], ["a", "b"]) == [0, 0]
    assert "each prompt has only one completion in this batch" in caplog.text


def test_normalized_rewards_still_show_their_mean():
    function = cloud_reward(LengthScorer(), normalize="group", num_generations=2)
    rewards, _, metrics = call(function, ["p", "p", "q", "q"], ["y", "yyy", "y", "y"])
    assert rewards == [-1, 1, 0, 0]
    assert metrics["cloud_reward/before_normalization"] == 1.5


@pytest.mark.parametrize(
    "options",
    [
        {"normalize": "batch"},
        {"on_unjudgeable": "skip"},
        {"on_response_changed": "show"},
        {"num_generations": 4},
        {"num_critiques": 2},
        {"num_critiques": "2", "temperature": 1.0},
        {"max_new_tokens": 0},
    ],
)
def test_unusable_options_are_refused_at_once(options):
    for make in (cloud_reward, async_cloud_reward):
        with pytest.raises(ValueError):
            make(LengthScorer(), **options)
