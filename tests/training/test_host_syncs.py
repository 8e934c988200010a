"""No step of training or decoding reads a value of the device, for which the host would wait."""

import sys
from collections import Counter

import pytest
import torch
from models_for_tests import make_model
from tokenizers_for_tests import make_tokenizer
from torch.utils._python_dispatch import TorchDispatchMode
from trainers_for_tests import make_trainer

from cloud_hf import generation


aten = torch.ops.aten
READS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.is_nonzero.default}
INDEXES = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}

# Places that read, by the end of their path and their function: why
OF_OTHERS = {
    "torch/optim/": "AdamW counts its steps on the CPU",
    "_ignore_causal_mask_sdpa": "transformers looks for padding in padded batches; flattened ones have none",
    "transformers/generation/": "`generate` asks after each step whether all rows have ended",
}


class Reads(TorchDispatchMode):
    """Counts reads by the innermost frame outside torch."""

    def __init__(self):
        super().__init__()
        self.places = Counter()
        self.operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations += 1
        if func in READS or (func in INDEXES and any(i is not None and i.dtype == torch.bool for i in args[1])):
            self.places[place_of(sys._getframe(1))] += 1
        return func(*args, **(kwargs or {}))


def place_of(frame) -> str:
    while frame is not None:
        name = frame.f_code.co_filename
        if "/torch/optim/" in name or ("/torch/" not in name and "contextlib" not in name and name != __file__):
            return f"{'/'.join(name.split('/')[-3:])}:{frame.f_code.co_name}"
        frame = frame.f_back
    return "autograd"


def of_ours(places: Counter) -> dict[str, int]:
    return {place: count for place, count in places.items() if not any(part in place for part in OF_OTHERS)}


@pytest.mark.parametrize(
    "options",
    [{}, {"shared_prompt": True, "center_rewards_coefficient": 0.1}, {"critique": False, "padding_free": True}],
    ids=["padded", "shared", "classic"],
)
def test_training_steps_read_nothing_between_logs(base_folder, tmp_path, options):
    trainer = make_trainer(
        str(base_folder), tmp_path, max_steps=3, logging_steps=100, gradient_accumulation_steps=2, per_device_train_batch_size=2,
        max_grad_norm=1.0, **options,
    )  # fmt: skip
    reads = Reads()

    def watched(method):
        def call(*args, **kwargs):
            with reads:
                return method(*args, **kwargs)

        return call

    for name in ("training_step", "_get_num_items_in_batch", "_get_grad_norm"):
        setattr(trainer, name, watched(getattr(trainer, name)))
    trainer.train()
    assert reads.operations > 1000
    assert of_ours(reads.places) == {}


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_decoding_steps_read_nothing(base_folder, temperature, monkeypatch):
    monkeypatch.setattr(generation, "_WITH_GENERATORS", ())  # as on a GPU
    model, tokenizer = make_model(base_folder).eval(), make_tokenizer("llama3")
    counts = []
    for new_tokens in (4, 12):
        with Reads() as reads:
            model.score(
                ["What?"] * 3, ["a", "b c", "d"], tokenizer, max_new_tokens=new_tokens, temperature=temperature, seed=0
            )
        counts.append(of_ours(reads.places))
    assert counts[0] == counts[1]  # what is read, is read once per batch
