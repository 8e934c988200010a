import pytest
from datasets import Dataset
from goldens import SIDES, encode, folder, kind_of, load_format, load_tokenizer, read
from safetensors.numpy import load_file

from cloud_hf.critique_format import IGNORE_INDEX
from cloud_hf.training.encoding import encode_pairs


FILES = [
    *(f"{method}_{size}" for method in ("teacher", "vanilla", "csft") for size in ("full", "trunc")),
    *(f"teacher_edge_{edge}" for edge in ("m2", "m1", "p0", "p1", "p2")),
]


def padded(encoded, max_length, pad_id):
    """Ids, mask, and labels shifted as the reference stores them."""
    pads = max_length - len(encoded.input_ids)
    labels = [*encoded.labels, *[IGNORE_INDEX] * pads]
    return (
        [*encoded.input_ids, *[pad_id] * pads],
        [1] * len(encoded.input_ids) + [0] * pads,
        [*labels[1:], IGNORE_INDEX],
    )


def config_of(name):
    return next(c for c in read("b_collate/index.json")["configs"] if c["file"] == f"{name}.safetensors")


@pytest.mark.parametrize("name", FILES)
def test_ids_masks_and_labels(compare, name):
    config, golden = config_of(name), load_file(folder() / f"b_collate/{name}.safetensors")
    for index, sample in enumerate(read("b_collate/samples.json")["samples"][: config["n"]]):
        for side in SIDES:
            encoded = encode(sample, side, name, config["max_seq_len"])
            rows = padded(encoded, config["max_seq_len"], load_tokenizer().eos_token_id)
            for ours, field in zip(rows, ("input_ids", "attention_mask", "lm_labels"), strict=True):
                compare.exact(ours, golden[f"{side}_{field}"][index].tolist(), (name, index, side, field))
            compare.exact(len(encoded.input_ids), config[f"{side}_lengths"][index])
            live = sum(label != IGNORE_INDEX for label in encoded.labels)
            compare.exact(live, config[f"{side}_loss_tokens"][index])


@pytest.mark.parametrize("method", ["teacher", "vanilla", "csft"])
def test_lengths_without_a_limit(compare, method):
    index, samples = read("b_collate/index.json"), read("b_collate/samples.json")["samples"]
    for sample, lengths in zip(samples, index["lengths_by_method"][method], strict=True):
        compare.exact([len(encode(sample, side, method, 10**6).input_ids) for side in SIDES], lengths)
    compare.exact(len(encode(samples[0], "chosen", "teacher", 10**6).input_ids), index["sample0_chosen_length"])


@pytest.mark.parametrize("name", ["teacher_full", "teacher_trunc", "vanilla_full", "vanilla_trunc"])
def test_the_trainers_datasets_hold_the_same(compare, name):
    """All but the row with an empty response and critique, which training refuses; lists train all their critiques."""
    config, golden = config_of(name), load_file(folder() / f"b_collate/{name}.safetensors")
    samples = read("b_collate/samples.json")["samples"]
    kept = [index for index, sample in enumerate(samples) if sample["chosen"] and sample["rejected_feedback"]]
    first = {
        key: [samples[i][key] if isinstance(samples[i][key], str) else samples[i][key][0] for i in kept]
        for key in samples[0]
    }
    rows = encode_pairs(Dataset.from_dict(first), load_format(kind_of(name)), config["max_seq_len"], "truncate_end")
    assert len(rows) == len(kept) == 7
    for row, index in zip(rows, kept, strict=True):
        for side in SIDES:
            length = len(row[f"{side}_ids"])
            compare.exact(row[f"{side}_ids"], golden[f"{side}_input_ids"][index, :length].tolist())
            labels = [IGNORE_INDEX] * row[f"{side}_prefix_length"] + row[f"{side}_ids"][row[f"{side}_prefix_length"] :]
            compare.exact(labels[1:], golden[f"{side}_lm_labels"][index, : length - 1].tolist())


def test_token_view(compare):
    samples = read("b_collate/samples.json")["samples"]
    for sample, tokens in zip(samples, read("b_collate/token_view_teacher_chosen_0_1.json"), strict=False):
        encoded = encode(sample, "chosen", "teacher", 10**6)
        for token, ours, label in zip(tokens, encoded.input_ids, [*encoded.labels[1:], IGNORE_INDEX], strict=False):
            compare.exact([ours, label], [token["id"], token["label"]])
