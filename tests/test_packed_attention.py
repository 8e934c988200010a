"""The GPU's ways to attend over a flattened batch, as far as a CPU can run them: their masks and arguments, and what they refuse."""

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from cloud_hf import packed_attention
from cloud_hf.packed_attention import make_block_mask, packed_sdpa_attention_forward


CPU = torch.device("cpu")
# Roots of several lengths, and trees of two and three levels, some longer than a block of 128
TABLES = {
    "flat": ((5, -1), (300, -1), (1, -1), (130, -1)),
    "pairs": ((150, -1), (20, 0), (140, 0), (260, -1), (3, 3), (2, 3)),
    "long": ((600, -1), (64, -1)),
    "deep": ((40, -1), (200, 0), (7, 1), (130, 1), (9, 0), (60, -1)),
}


class Layer(torch.nn.Module):
    is_causal = True

    def __init__(self, groups: int):
        super().__init__()
        self.num_key_value_groups = groups


def make_states(table, heads=4, kv_heads=2, size=16):
    torch.manual_seed(0)
    tokens = sum(length for length, _ in table)
    return [torch.randn(1, count, tokens, size, requires_grad=True) for count in (heads, kv_heads, kv_heads)]


def by_segment(states, table, window):
    mask = torch.tensor(table)[None, None]
    groups = states[0].shape[1] // states[1].shape[1]
    return packed_sdpa_attention_forward(Layer(groups), *states, mask, sliding_window=window, scaling=0.2)[0]


def visible(table, window) -> torch.Tensor:
    """The dense mask, from the definition."""
    ancestors, positions, segments = [], [], []
    for index, (length, parent) in enumerate(table):
        ancestors.append({index} | (ancestors[parent] if parent >= 0 else set()))
        start = sum(table[other][0] for other in ancestors[index] - {index})
        positions += range(start, start + length)
        segments += [index] * length
    return torch.tensor(
        [
            [
                segments[k] in ancestors[segments[q]]
                and (k <= q)
                and (window is None or positions[q] - positions[k] < window)
                for k in range(len(segments))
            ]
            for q in range(len(segments))
        ]
    )


def assert_same_with_gradients(ours, theirs, states):
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    weights = torch.randn(theirs.shape)
    gradients = [torch.autograd.grad((each * weights).sum(), states, retain_graph=True) for each in (ours, theirs)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("window", [None, 24, 200])
@pytest.mark.parametrize("name", TABLES)
def test_flex_attention_sees_what_the_segments_see(name, window):
    table, states = TABLES[name], make_states(TABLES[name])
    states = [each.detach() for each in states]  # FlexAttention has no backward pass on CPUs
    ours = packed_attention._attend_flex(*states, table, window, 0.2, None, flex_attention)
    torch.testing.assert_close(ours, by_segment(states, table, window), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("window", [None, 24, 200])
@pytest.mark.parametrize("name", TABLES)
def test_blocks_are_left_out_or_unmasked_only_where_the_mask_allows(name, window):
    """What a kernel computes: blocks in no list are skipped, those in the full list are not masked."""
    mask, dense = make_block_mask(TABLES[name], window, CPU), visible(TABLES[name], window)
    computed = torch.zeros_like(dense)
    for row in range(mask.kv_indices.shape[2]):
        for counts, indices, is_full in (
            (mask.kv_num_blocks, mask.kv_indices, False),
            (mask.full_kv_num_blocks, mask.full_kv_indices, True),
        ):
            for block in indices[0, 0, row, : counts[0, 0, row]].tolist():
                spot = (slice(row * 128, row * 128 + 128), slice(block * 128, block * 128 + 128))
                computed[spot] = True if is_full else dense[spot]
    assert torch.equal(computed, dense)
    if name == "long" and window is None:
        assert mask.full_kv_num_blocks[0, 0].tolist() == [0, 1, 2, 3, 0, 0]


def test_soft_caps():
    table = TABLES["deep"]
    query, key, value = states = [each.detach() for each in make_states(table, kv_heads=4)]
    scores = 3.0 * torch.tanh(query @ key.transpose(2, 3) * 0.2 / 3.0)
    theirs = scores.masked_fill(~visible(table, None), -torch.inf).softmax(-1) @ value
    ours = packed_attention._attend_flex(*states, table, None, 0.2, 3.0, flex_attention)
    torch.testing.assert_close(ours, theirs.transpose(1, 2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("window", [None, 24])
def test_the_variable_length_kernel_is_told_of_sequences_and_window(window, monkeypatch):
    """A stand-in does what the kernel's documentation says: causal, `left` tokens back, aligned to the lower right."""

    def attend(query, key, value, ends_q, ends_k, longest_q, longest_k, *, scale, window_size, enable_gqa):
        assert ends_q.dtype == torch.int32 and longest_q == longest_k == int(ends_q.diff().max())
        left, right = window_size
        outputs = []
        for start, end in zip(ends_q.tolist(), ends_k.tolist()[1:], strict=False):
            distance = torch.arange(end - start)[:, None] - torch.arange(end - start)
            seen = (distance >= -right) & ((distance <= left) | torch.tensor(left < 0))
            parts = (each[start:end].transpose(0, 1) for each in (query, key, value))
            outputs.append(
                torch.nn.functional.scaled_dot_product_attention(
                    *parts, attn_mask=seen, scale=scale, enable_gqa=enable_gqa
                )
            )
        return torch.cat(outputs, dim=1).transpose(0, 1)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", attend)
    table, states = TABLES["flat"], make_states(TABLES["flat"])
    ours = packed_attention._attend_varlen(*states, table, window, 0.2)
    assert_same_with_gradients(ours, by_segment(states, table, window), states)


@pytest.mark.parametrize(
    ("name", "dtype", "options", "kernel"),
    [
        ("flat", torch.bfloat16, {}, "varlen"),
        ("flat", torch.float32, {}, "flex"),
        ("pairs", torch.bfloat16, {}, "flex"),
        ("flat", torch.bfloat16, {"softcap": 30.0}, "flex"),
    ],
)
def test_the_kernel_that_applies_is_called_and_logged_once(name, dtype, options, kernel, monkeypatch, caplog):
    called = []
    monkeypatch.setattr(packed_attention, "_attend_varlen", lambda *_: called.append("varlen"))
    monkeypatch.setattr(packed_attention, "_attend_flex", lambda *_: called.append("flex"))
    packed_attention._tell.cache_clear()
    states = [each.to(dtype) for each in make_states(TABLES[name])]
    with caplog.at_level("INFO", logger="cloud_hf"):
        for _ in range(2):
            packed_attention._attend_on_gpu(*states, TABLES[name], None, **options)
    assert called == [kernel, kernel] and len(caplog.records) == 1


@pytest.mark.parametrize(("name", "kernel"), [("flat", "varlen"), ("pairs", "flex")])
def test_under_autocast_the_kernel_gets_one_half_precision_type(name, kernel, monkeypatch):
    """With weights in fp32, rotary embeddings leave queries and keys in fp32, next to values in bf16."""
    called = []

    def attend(query, key, value, *_):
        called.append({each.dtype for each in (query, key, value)})

    monkeypatch.setattr(packed_attention, f"_attend_{kernel}", attend)
    query, key, value = make_states(TABLES[name])
    with torch.autocast("cpu", torch.bfloat16):
        packed_attention._attend_on_gpu(query, key, value.bfloat16(), TABLES[name], None)
    assert called == [{torch.bfloat16}]


def test_heads_of_a_size_that_the_variable_length_kernel_lacks_go_to_flex_attention(monkeypatch):
    monkeypatch.setattr(packed_attention, "_attend_flex", lambda *_: "flex")
    states = [each.bfloat16() for each in make_states(TABLES["flat"], size=20)]
    assert packed_attention._attend_on_gpu(*states, TABLES["flat"], None) == "flex"


def test_what_no_kernel_does_is_refused():
    states = make_states(TABLES["pairs"], size=8)
    with pytest.raises(ValueError, match="a head size of at least 16, but this model's is 8"):
        packed_attention._attend_on_gpu(*states, TABLES["pairs"], None)
    with pytest.raises(ValueError, match="`disable_dropout`"):
        packed_attention._attend_on_gpu(*states, TABLES["pairs"], None, dropout=0.1)
    with pytest.raises(ValueError, match="must follow it"):
        make_block_mask(((4, -1), (4, -1), (4, 0)), None, CPU)
