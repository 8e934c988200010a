"""Options that make training faster give the same weights, or are refused before a model is loaded."""

import pytest
import torch
from accelerate import ParallelismConfig
from trainers_for_tests import make_trainer

from cloud_hf import CLoudTrainingConfig
from cloud_hf.training.launch import check_parallelism


@pytest.fixture(scope="module")
def plain(base_folder, tmp_path_factory):
    return trained(base_folder, tmp_path_factory.mktemp("plain"))


def trained(base_folder, folder, **options):
    trainer = make_trainer(str(base_folder), folder, max_steps=2, **options)
    trainer.train()
    trainer.save_model(str(folder / "model"))
    return {name.replace("_orig_mod.", ""): weight.detach() for name, weight in trainer.model.named_parameters()}


@pytest.mark.parametrize(
    "options",
    [{"optim": "adamw_torch_fused"}, {"torch_compile": True, "torch_compile_backend": "aot_eager"}],
    ids=["fused", "compiled"],
)
def test_the_weights_are_those_of_a_plain_run(plain, base_folder, tmp_path, options):
    weights = trained(base_folder, tmp_path, **options)
    assert weights.keys() == plain.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, plain[name], atol=2e-5, rtol=0, msg=name)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"use_liger_kernel": True}, "`use_liger_kernel` would have no effect"),
        ({"activation_offloading": True}, "`activation_offloading` moves activations from a GPU"),
        ({"torch_compile": True, "padding_free": True}, "`torch_compile` is set, but with `padding_free`"),
    ],
)
def test_options_that_would_not_help_are_refused(tmp_path, options, says):
    with pytest.raises(ValueError, match=says):
        CLoudTrainingConfig(str(tmp_path), use_cpu=True, bf16=False, **options)


@pytest.mark.parametrize("size", ["cp_size", "sp_size", "tp_size"])
def test_parallelism_within_a_sequence_is_refused(tmp_path, monkeypatch, size):
    args = CLoudTrainingConfig(str(tmp_path), use_cpu=True, bf16=False)
    args.parallelism_config = ParallelismConfig(**{size: 2})
    with pytest.raises(ValueError, match=f"`parallelism_config` has {size}=2"):
        make_trainer("no/such-model", tmp_path, parallelism_config=args.parallelism_config)
    args.parallelism_config = None
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")  # as `accelerate launch` tells its processes
    monkeypatch.setenv(f"PARALLELISM_CONFIG_{size.upper()}", "2")
    with pytest.raises(ValueError, match=f"`parallelism_config` has {size}=2"):
        check_parallelism(args)


def test_several_gpus_in_one_process_are_refused(tmp_path):
    args = CLoudTrainingConfig(str(tmp_path), use_cpu=True, bf16=False)
    args._n_gpu = 2
    with pytest.raises(ValueError, match="This process sees 2 GPUs"):
        check_parallelism(args)
