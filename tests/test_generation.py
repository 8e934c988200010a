import pytest
import torch
from models_for_tests import PROMPTS, RESPONSES, make_model, save_language_model
from peft import LoraConfig, get_peft_model
from same_scores import assert_same_scores
from scipy.stats import chisquare, kstest
from tokenizers_for_tests import make_tokenizer

from cloud_hf import CritiqueFormat, TransformersScorer, generation
from cloud_hf.generation import can_share_prefill


OPTIONS = {"temperature": 1.0, "seed": 7, "max_new_tokens": 10}

# Full attention, sliding windows alone and in turns with full attention, learned positions, states of convolutions and of
# state-space layers
SHARING = {
    "llama": {},
    "qwen3": {"head_dim": 8},
    "mistral": {"sliding_window": 16},
    "gemma2": {"head_dim": 8, "sliding_window": 16},
    "gemma3_text": {"head_dim": 8, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt2": {},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "bamba": {"attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 16, "mamba_n_groups": 1},
}  # fmt: skip

# Their state has another name, in their own cache class, in the modules
NOT_SHARING = {
    "mamba": {"state_size": 8},
    "minimax": {"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 8},
    "recurrent_gemma": {"num_hidden_layers": 3, "lru_width": 32, "head_dim": 8, "attention_window_size": 16},
}


def make_talker(folder, model_type="llama", options=None, **kwargs):
    """A model that ends its critiques at different lengths."""
    model = make_model(save_language_model(folder, model_type, seed=3, **(options or {})), **kwargs)
    with torch.no_grad():
        model.get_output_embeddings().weight[model.config.critique_end_token_id] *= 1.3
    return model


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
    model = make_talker(tmp_path_factory.mktemp("talker"))
    results = score(model, num_critiques=3)
    assert {reason for result in results for reason in result.finish_reasons} == {"stop", "length"}
    return model


def score(model, rows=slice(None), **kwargs):
    return TransformersScorer(model, make_tokenizer("llama3"), kwargs.pop("batch_size", 16)).score(
        PROMPTS[rows], RESPONSES[rows], **{**OPTIONS, **kwargs}
    )


def score_unshared(model, monkeypatch, **kwargs):
    with monkeypatch.context() as patch:
        patch.setattr(generation, "can_share_prefill", lambda language_model: False)
        return score(model, **kwargs)


def same(shared, unshared):
    for a, b in zip(shared, unshared, strict=True):
        assert a.critique_ids == b.critique_ids and a.finish_reasons == b.finish_reasons
        assert a.rewards == pytest.approx(b.rewards, abs=1e-5)


def passes(model, **kwargs):
    """Shapes of what is fed while critiques are written."""
    shapes = []
    hook = model.trunk.register_forward_hook(
        lambda module, args, output: shapes.append(tuple(output.last_hidden_state.shape[:2]))
    )
    score(model, **kwargs)
    hook.remove()
    return shapes


@pytest.mark.parametrize("model_type", SHARING)
def test_critiques_from_a_shared_prefill_are_those_from_their_own(tmp_path, monkeypatch, model_type):
    model = make_talker(tmp_path, model_type, SHARING[model_type])
    assert can_share_prefill(model.language_model)
    unshared = score_unshared(model, monkeypatch, num_critiques=3)
    assert len({ids for result in unshared for ids in result.critique_ids}) > 6
    for batch_size in (1, 4, 16):
        same(score(model, num_critiques=3, batch_size=batch_size), unshared)


@pytest.mark.parametrize(("batch_size", "num_critiques"), [(1, 2), (4, 6), (4, 8), (6, 4), (5, 3), (16, 3), (3, 3)])
def test_each_prefix_is_read_once(talker, monkeypatch, batch_size, num_critiques):
    """Also where the critiques of one response do not fit one batch, or a batch ends amid them."""
    shapes = passes(talker, batch_size=batch_size, num_critiques=num_critiques)
    assert sum(rows for rows, width in shapes if width > 1) == len(PROMPTS)
    assert max(rows for rows, width in shapes) <= batch_size
    shared = score(talker, batch_size=batch_size, num_critiques=num_critiques)
    same(shared, score_unshared(talker, monkeypatch, num_critiques=num_critiques))


def test_one_critique_is_one_prefill_and_single_tokens(talker):
    shapes = passes(talker, num_critiques=1, batch_size=2)
    critique_format = CritiqueFormat.from_config(talker.config, make_tokenizer("llama3"))
    pairs = zip(PROMPTS, RESPONSES, strict=True)
    widths = sorted(len(critique_format.encode_prefix(*pair).input_ids) for pair in pairs)
    assert [shape for shape in shapes if shape[1] > 1] == [(2, widths[3]), (2, widths[1])]


def test_batches_of_critiques_are_full(talker):
    shapes = passes(talker, num_critiques=3, batch_size=4)
    assert {rows for rows, width in shapes if width == 1} == {4}


@pytest.mark.parametrize("model_type", NOT_SHARING)
def test_a_state_that_is_no_cache_is_not_shared(tmp_path, model_type):
    model = make_talker(tmp_path, model_type, NOT_SHARING[model_type])
    assert not can_share_prefill(model.language_model)
    shapes = passes(model, rows=slice(1), num_critiques=3)
    assert [rows for rows, width in shapes if width > 1] == [3]
    [result] = score(model, rows=slice(1), num_critiques=3)
    assert len(set(result.critique_ids)) == 3


def test_a_repetition_penalty_sees_the_whole_prefix(tmp_path, monkeypatch):
    model = make_talker(tmp_path, format="reference")
    monkeypatch.setattr("cloud_hf.critique_format.ReferenceFormat.repetition_penalty", 1.5)
    same(score(model, num_critiques=3), score_unshared(model, monkeypatch, num_critiques=3))
    penalised = score(model, num_critiques=3)
    monkeypatch.setattr("cloud_hf.critique_format.ReferenceFormat.repetition_penalty", 1.0)
    assert [r.critique_ids for r in score(model, num_critiques=3)] != [r.critique_ids for r in penalised]


def test_an_adapter_shares_too(tmp_path, monkeypatch):
    model = make_talker(tmp_path)
    plain = score(model, num_critiques=3)
    model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"], init_lora_weights=False))
    adapted = score(model.eval(), num_critiques=3)
    assert [r.rewards for r in adapted] != [r.rewards for r in plain]
    same(adapted, score_unshared(model, monkeypatch, num_critiques=3))
    assert sum(rows for rows, width in passes(model, num_critiques=3) if width > 1) == len(PROMPTS)


def test_unseeded_samples_follow_torch(talker):
    torch.manual_seed(0)
    first = score(talker, num_critiques=2, seed=None)
    torch.manual_seed(0)
    assert_same_scores(score(talker, num_critiques=2, seed=None), first)
    other = score(talker, num_critiques=2, seed=None)
    assert [result.critiques for result in other] != [result.critiques for result in first]


# ------------------------------------------------------------------------------------------------- noise of a device


def test_the_first_outputs_of_split_mix():
    """Those of the generator's reference implementation for the seed 1234567."""
    state = torch.tensor([1234567 + generation._signed(count * generation._GOLDEN) for count in range(1, 4)])
    outputs = [int(number) % 2**64 for number in generation._split_mix(state)]
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_noise_of_a_device_is_exponential_and_each_rows_own():
    seeds = torch.tensor([3, -(2**63), 2**63 - 1, 4])
    noise = torch.stack([generation.exponential_noise(seeds, step, 5000) for step in range(4)])
    assert torch.equal(noise[2][1:3], generation.exponential_noise(seeds[1:3], 2, 5000))
    assert noise.min() > 0 and noise.isfinite().all()
    assert kstest(noise.flatten().numpy(), "expon").pvalue > 0.01
    correlations = torch.corrcoef(noise.reshape(16, -1)) - torch.eye(16)  # of rows and steps
    assert correlations.abs().max() < 5 / 5000**0.5


def test_samples_with_noise_of_a_device_are_of_the_softmax():
    logits = torch.tensor([2.0, 0.0, 1.0, -3.0])
    seeds = torch.arange(20_000)
    drawn = (logits / 0.7 - generation.exponential_noise(seeds, 0, 4).log()).argmax(-1).bincount(minlength=4)
    assert chisquare(drawn, (logits.double() / 0.7).softmax(-1) * 20_000).pvalue > 0.01


def test_samples_with_noise_of_a_device_depend_on_neither_batch_nor_order(talker, monkeypatch):
    monkeypatch.setattr(generation, "_WITH_GENERATORS", ())
    expected = score(talker, num_critiques=2, batch_size=8)
    for batch_size in (1, 3):
        found = score(talker, slice(None, None, -1), num_critiques=2, batch_size=batch_size)[::-1]
        assert [each.critique_ids for each in found] == [each.critique_ids for each in expected]
    assert len({ids for each in expected for ids in each.critique_ids}) == 2 * len(PROMPTS)
