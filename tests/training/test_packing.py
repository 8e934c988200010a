"""Batches without padding, and with one copy of shared prompts, train like padded ones."""

import numpy as np
import pytest
import torch
from models_for_tests import make_model, save_language_model
from packed_batches import LONG_PROMPT, MODES, encoded_rows, make_rows, train
from peft import LoraConfig
from tokenizers_for_tests import make_tokenizer
from transformers import LlamaConfig

from cloud_hf import CLoudConfig, CLoudForRewardModeling, CLoudTrainer, CLoudTrainingConfig, base_checks
from cloud_hf.critique_format import IGNORE_INDEX
from cloud_hf.packed_attention import packed_arguments
from cloud_hf.training.packing import MIN_SHARED_TOKENS, Packing, TokenSequence


LOGGED = ("loss", "pairwise_loss", "lm_loss", "accuracy", "mean_reward", "reward_std", "min_reward", "critique_length")


def assert_same(results, critique=True):
    log, gradients = results["padded"]
    for mode in ("padding_free", "shared_prompt"):
        other_log, other_gradients = results[mode]
        for name in LOGGED if critique else LOGGED[:2]:
            assert other_log[name] == pytest.approx(log[name], abs=1e-5), (mode, name)
        assert set(other_gradients) == set(gradients)
        for name, gradient in gradients.items():
            torch.testing.assert_close(other_gradients[name], gradient, atol=1e-5, rtol=1e-5, msg=f"{mode}: {name}")
    padded, flat, shared = (results[mode][0]["num_tokens"] for mode in MODES)
    assert shared < 0.8 * flat and flat == padded  # counted without padding


NO_DROPOUT = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
ARCHITECTURES = {
    "llama": {"num_key_value_heads": 2},
    "gpt2": NO_DROPOUT,
    "qwen2": {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1},
    "qwen3": {"head_dim": 8},
    "mistral": {"sliding_window": 24},
    "gemma2": {"sliding_window": 24, "head_dim": 8, "attn_logit_softcapping": None},
    "gemma3_text": {"sliding_window": 24, "head_dim": 8},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.0},
    "phi3": {},
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_losses_and_gradients_are_those_of_the_padded_run(tmp_path, architecture):
    # Wide weights make rewards and gradients of hundreds, of which 1e-5 is less than rounding
    options = {"initializer_range": 0.1, **ARCHITECTURES[architecture]}
    base = save_language_model(tmp_path / "base", architecture, **options)
    rows = make_rows(margin=0.3, critiques=(1, 3))
    results = {
        mode: train(make_model(base), tmp_path / mode, rows, per_device_train_batch_size=12, **options)
        for mode, options in MODES.items()
    }
    assert_same(results)


@pytest.fixture(scope="module")
def calm_base(tmp_path_factory):
    return save_language_model(tmp_path_factory.mktemp("calm"), initializer_range=0.1)


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3},
        {"lm_loss_chunks": 5, "center_rewards_coefficient": 0.1},
        {"peft_config": LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")},
    ],
    ids=["checkpointing", "reentrant", "accumulation", "chunks", "lora"],
)
def test_and_so_with_other_options(calm_base, tmp_path, options):
    rows = make_rows(critiques=(1, 3))
    options = {"per_device_train_batch_size": 12, **options}
    results = {}
    for mode, mode_options in MODES.items():
        torch.manual_seed(0)  # of the adapters
        results[mode] = train(make_model(calm_base), tmp_path / mode, rows, **options, **mode_options)
    assert_same(results)


def test_and_so_with_classic_models(calm_base, tmp_path):
    rows = make_rows(8).remove_columns(["chosen_feedback", "rejected_feedback"])
    results = {
        mode: train(make_model(calm_base, critique=False), tmp_path / mode, rows, critique=False, **options)
        for mode, options in MODES.items()
    }
    assert_same(results, critique=False)


@pytest.mark.parametrize("unlabelled", ["some", "all"])
def test_and_so_where_critiques_have_no_labels(calm_base, tmp_path, unlabelled):
    """As after a cut on the right that takes the critique away."""
    trainer_rows = encoded_rows(calm_base, tmp_path, make_rows(8))

    def cut(row, index):
        if unlabelled == "all" or index % 2:
            for side in ("chosen", "rejected"):
                row[f"{side}_ids"] = row[f"{side}_ids"][: row[f"{side}_prefix_length"]]
        return row

    rows = trainer_rows.map(cut, with_indices=True)
    results = {mode: train(make_model(calm_base), tmp_path / mode, rows, **options) for mode, options in MODES.items()}
    assert_same(results, critique=unlabelled == "some")


@pytest.mark.parametrize("mode", ["padding_free", "shared_prompt"])
def test_evaluation_and_scoring_are_the_same(calm_base, tmp_path, mode):
    rows = make_rows(7)
    metrics, scores = [], []
    for options in ({}, MODES[mode]):
        model = make_model(calm_base)
        config = CLoudTrainingConfig(
            str(tmp_path / "eval"), use_cpu=True, bf16=False, report_to=[], per_device_eval_batch_size=3, **options
        )
        tokenizer = make_tokenizer("llama3")
        trainer = CLoudTrainer(model, config, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer)
        metrics.append(trainer.evaluate())
        scores.append(model.score(["x", LONG_PROMPT], ["y", "z"], tokenizer, max_new_tokens=8))
    for name in ("eval_loss", "eval_pairwise_loss", "eval_lm_loss", "eval_accuracy", "eval_mean_reward"):
        assert metrics[1][name] == pytest.approx(metrics[0][name], abs=1e-5), name
    for a, b in zip(*scores, strict=True):
        assert a.critique_ids == b.critique_ids and a.reward == pytest.approx(b.reward, abs=1e-5)


# ------------------------------------------------------------------------------------------------------ the tree


def test_packing_is_a_tree_of_the_prefixes():
    """A prompt, two responses, and critiques of one of them that begin alike."""
    prompt, first, second = np.arange(40), np.arange(100, 145), np.arange(200, 203)
    critiques = [np.arange(300, 300 + n) for n in (40, 45)]
    sequences = [TokenSequence(np.concatenate([prompt, first, critique]), 85) for critique in critiques]
    sequences += [
        TokenSequence(np.concatenate([prompt, second, critiques[0]]), 43),
        TokenSequence(np.arange(500, 510), 9),
    ]
    packing = Packing(sequences, shared_prompt=True)
    pieces = [(s.sequence, s.start, s.end, s.parent) for s in packing.segments]
    assert pieces == [(0, 0, 40, -1), (0, 40, 84, 0), (0, 84, 125, 1), (1, 84, 130, 1), (2, 40, 83, 0), (3, 0, 10, -1)]
    batch = packing.tensors(labels=True)
    assert batch["input_ids"].shape == (1, packing.num_tokens) == (1, 40 + 44 + 41 + 46 + 43 + 10)
    for index, sequence in enumerate(sequences):
        path, segment = [], packing.leaves[index]
        while segment >= 0:
            path.insert(0, segment)
            segment = packing.segments[segment].parent
        starts = [sum(len(s) for s in packing.segments[:segment]) for segment in path]
        where = [
            i for start, s in zip(starts, path, strict=True) for i in range(start, start + len(packing.segments[s]))
        ]
        assert batch["input_ids"][0, where].tolist() == sequence.ids.tolist()
        assert batch["position_ids"][0, where].tolist() == list(range(len(sequence.ids)))
        expected = [IGNORE_INDEX] * sequence.prefix_length + sequence.ids[sequence.prefix_length :].tolist()
        assert batch["labels"][0, where].tolist() == expected
        assert batch["reward_positions"][index] == where[-1]


@pytest.mark.parametrize("shared", [MIN_SHARED_TOKENS - 1, MIN_SHARED_TOKENS])
def test_short_prefixes_are_not_shared(shared):
    sequences = [TokenSequence(np.concatenate([np.arange(shared), [100 + i, 7]]), shared + 1) for i in range(2)]
    assert len(Packing(sequences, shared_prompt=True).segments) == (3 if shared >= MIN_SHARED_TOKENS else 2)
    assert len(Packing(sequences, shared_prompt=False).segments) == 2


# ------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("architecture", "options", "says"),
    [
        ("mamba", {}, "its linear_attention would mix"),
        ("falcon", {}, "does not allow setting positions or the attention implementation"),
        ("llama", {"attn_implementation": "eager"}, "cannot be used with the attention implementation 'eager'"),
    ],
)
@pytest.mark.parametrize("mode", ["padding_free", "shared_prompt"])
def test_models_that_would_mix_sequences_are_refused(tmp_path, architecture, options, says, mode):
    model = make_model(save_language_model(tmp_path / "base", architecture), **options)
    with pytest.raises(ValueError, match=f"`{mode}` cannot be used") as error:
        train(model, tmp_path, make_rows(2), **MODES[mode])
    assert says in str(error.value)


@pytest.mark.parametrize("mode", ["padding_free", "shared_prompt"])
def test_what_mixes_tokens_unannounced_is_found_out(model, tmp_path, mode):
    def look_back(layer, args, kwargs):
        return (args[0] + args[0].roll(1, dims=1), *args[1:]), kwargs

    model.trunk.layers[1].register_forward_pre_hook(look_back, with_kwargs=True)
    with pytest.raises(ValueError, match="the sequences of a flattened batch would see each other"):
        train(model, tmp_path, make_rows(2), **MODES[mode])


@pytest.mark.parametrize("std", [0.02, 0.3])
@pytest.mark.parametrize("shared_prompt", [False, True])
def test_the_check_of_segments_tells_rounding_from_a_look_at_the_others(std, shared_prompt, monkeypatch):
    """32 layers in bf16, where rounding alone changes states by up to 6%."""
    torch.manual_seed(0)
    text_config = LlamaConfig(
        hidden_size=64, num_hidden_layers=32, intermediate_size=128, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=1000, initializer_range=std,
    )  # fmt: skip
    model = CLoudForRewardModeling(CLoudConfig(text_config=text_config)).to(torch.bfloat16)
    model.prepare_for_segments(shared_prompt)

    def forget_segments(config, segments, device):
        return {"attention_mask": torch.ones(1, int(segments[:, 0].sum()))}

    monkeypatch.setattr(base_checks, "packed_arguments", forget_segments)
    with pytest.raises(ValueError, match="the sequences of a flattened batch would see each other"):
        model.prepare_for_segments(shared_prompt)


def test_a_flattened_batch_wants_a_model_that_was_prepared(model):
    packing = Packing([TokenSequence(np.arange(5, 50), 40), TokenSequence(np.arange(5, 55), 40)], shared_prompt=True)
    with pytest.raises(ValueError, match=r"'packed_sdpa' .* not 'sdpa'"):
        model(**packing.tensors(labels=True))


def test_flash_attention_is_given_the_lengths():
    """Its kernels need a GPU; what they are told does not."""
    config = LlamaConfig()
    config._attn_implementation = "flash_attention_2"
    told = packed_arguments(config, torch.tensor([[3, -1], [4, -1]]), torch.device("cpu"))
    assert told["attention_mask"] is None and told["max_length_q"] == told["max_length_k"] == 4
    assert told["cu_seq_lens_q"].tolist() == told["cu_seq_lens_k"].tolist() == [0, 3, 7]
    with pytest.raises(ValueError, match="FlashAttention does not support shared prompts"):
        packed_arguments(config, torch.tensor([[3, -1], [4, 0]]), torch.device("cpu"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"padding_free": True, "pad_to_multiple_of": 8},
            "`pad_to_multiple_of` is set, but `padding_free` pads nothing",
        ),
        ({"lm_loss_chunks": 0}, "`lm_loss_chunks` is 0"),
        ({"critique": False, "lm_loss_chunks": 2}, "a classic model has no critique loss"),
        ({"token_budget": 0}, "`token_budget` is 0"),
        ({"token_budget": 100, "train_sampling_strategy": "sequential"}, "leave it at 'random'"),
        ({"token_budget": 100, "auto_find_batch_size": True}, "`token_budget` counts tokens"),
    ],
)
def test_options_that_cannot_work_together_are_refused(tmp_path, options, says):
    with pytest.raises(ValueError, match=says):
        CLoudTrainingConfig(str(tmp_path), use_cpu=True, bf16=False, **options)
