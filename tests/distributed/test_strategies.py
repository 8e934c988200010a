"""Two processes, however the model is spread over them, train as one process does and save the same model."""

import json

import pytest
import torch
from critics_for_tests import save_critic
from launching import run_strategy
from models_for_tests import make_model, save_language_model
from safetensors.torch import load_file
from tokenizers_for_tests import make_tokenizer
from transformers import AutoModel, AutoTokenizer

from cloud_hf import CLoudConfig
from cloud_hf.loading import load_reward_model
from cloud_hf.training.plan import PlanArguments, make_plan


STRATEGIES = ["ddp", "zero1", "zero2", "zero3", "zero3_offload", "fsdp2"]
IN_EVERY_TEST_RUN = ["ddp", "zero3", "fsdp2"]
KINDS = [(kind, lora) for kind in ("cloud", "classic") for lora in (False, True)]
# Beside whole CLoud models; an adapter is made when ZeRO-3 has divided its base
ALSO = {"ddp": ("classic", False), "zero3": ("cloud", True)}
# Stage 4, whose critiques FSDP cannot write
OUTCOME = ("outcome", False)
# Batches of as many pairs as fit into a number of tokens, in one row, with one copy of shared prompts
IN_ONE_ROW = ("shared", False)

OUTCOME_OPTIONS = {
    "num_generations": 2, "max_completion_length": 8, "beta": 0.1, "center_rewards_coefficient": None,
    "eval_strategy": "steps", "eval_steps": 9,
}  # fmt: skip


def runs_of(base, kinds):
    in_one_row = {"shared_prompt": True, "token_budget": 500, "per_device_train_batch_size": 4}
    return [
        {
            "name": name_of(kind, lora), "base": str(base / "cloud" if kind == "outcome" else base), "lora": lora,
            "outcome": kind == "outcome",
            "options": OUTCOME_OPTIONS if kind == "outcome" else {
                "critique": kind != "classic", "eval_strategy": "steps", "eval_steps": 9, **(in_one_row if kind == "shared" else {}),
                "center_rewards_coefficient": None if lora else 0.1,  # an adapter whose head has a frozen bias
            },
        }
        for kind, lora in kinds
    ]  # fmt: skip


def name_of(kind, lora):
    return f"{kind}-{'lora' if lora else 'full'}"


def weights_of(folder):
    [file] = folder.glob("model/*model.safetensors")
    return load_file(file)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A language model whose vocabulary is so large that its loss is computed in pieces, and in `cloud` a CLoud model of it."""
    folder = save_language_model(tmp_path_factory.mktemp("base"), vocab_size=40_000)
    make_model(save_critic(folder / "critic", vocab_size=40_000, loudness=4.0)).save_pretrained(folder / "cloud")
    make_tokenizer("llama3").save_pretrained(folder / "cloud")
    return folder


@pytest.fixture(scope="module")
def some_kinds(base, tmp_path_factory):
    """What `test_two_processes_are_one` compares, trained by one process."""
    return train_alone(
        base, tmp_path_factory.mktemp("single"), [("cloud", False), IN_ONE_ROW, OUTCOME, *ALSO.values()]
    )


@pytest.fixture(scope="module")
def every_kind(base, tmp_path_factory):
    """Both arms, whole and as adapters, and stage 4, trained by one process."""
    return train_alone(base, tmp_path_factory.mktemp("single"), [*KINDS, OUTCOME])


def train_alone(base, folder, kinds):
    return folder, run_strategy(folder, "single", runs_of(base, kinds))


@pytest.mark.parametrize("strategy", IN_EVERY_TEST_RUN)
def test_two_processes_are_one(base, some_kinds, tmp_path, strategy):
    kinds = [("cloud", False), IN_ONE_ROW, *([ALSO[strategy]] if strategy in ALSO else [])]
    kinds += [OUTCOME] if strategy == "zero3" else []  # gathers all parameters to write critiques
    compare(base, some_kinds, tmp_path, strategy, kinds)


@pytest.mark.full
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_are_one_in_every_kind(base, every_kind, tmp_path, strategy):
    compare(base, every_kind, tmp_path, strategy, [*KINDS, *([] if strategy.startswith("fsdp") else [OUTCOME])])


BF16 = {"bf16": True, "eval_strategy": "no"}
MIXED = [
    ("fp32 weights", False, BF16),
    ("bf16 weights", False, {**BF16, "model_init_kwargs": {"dtype": "bfloat16"}}),
    ("adapter", True, {**BF16, "model_init_kwargs": {"dtype": "bfloat16"}, "gradient_checkpointing": True}),
    ("bf16 alone", False, {"bf16": False, "model_init_kwargs": {"dtype": "bfloat16"}}),
]


@pytest.mark.parametrize("strategy", ["fsdp2", pytest.param("zero3", marks=pytest.mark.full)])
def test_bf16_with_an_fp32_head_and_tied_embeddings(tmp_path, strategy):
    tied = save_language_model(tmp_path / "base", tie_word_embeddings=True, initializer_range=0.1)
    runs = [{"name": name, "base": str(tied), "lora": lora, "options": options} for name, lora, options in MIXED]
    results = run_strategy(tmp_path / strategy, strategy, runs)
    for name, lora, options in MIXED:
        folder, result = tmp_path / strategy / name, results[name]
        losses = [line["loss"] for line in result["log"] if "loss" in line]
        assert losses[0] == pytest.approx(9.05, abs=0.02) and losses[-1] < losses[0] - 0.2
        rewards = torch.tensor(result["rewards"])
        assert (rewards.bfloat16().float() != rewards).all()  # the head computed in fp32
        weights = weights_of(folder)
        head = {weight.dtype for key, weight in weights.items() if "reward_head" in key}
        assert head == {torch.bfloat16 if strategy == "zero3" and options["bf16"] else torch.float32}
        kwargs = {"dtype": torch.bfloat16}
        model = (
            load_reward_model(str(folder / "model"), **kwargs)[0]
            if lora
            else AutoModel.from_pretrained(folder / "model", **kwargs)
        )
        embeddings = model.get_input_embeddings().weight
        assert embeddings.dtype == torch.bfloat16 and embeddings is model.get_output_embeddings().weight
        assert model.reward_head.dense.weight.dtype == torch.float32
        with torch.no_grad():
            again = model.eval()(**torch.load(folder / "batch.pt")).logits[:, 0]
        assert (again - rewards).abs().max() < 0.03


def compare(base, one_process, folder, strategy, kinds):
    one_folder, ones = one_process
    twos = run_strategy(folder, strategy, runs_of(base, kinds))
    for kind, lora in kinds:
        name = name_of(kind, lora)
        one, two = ones[name], twos[name]
        assert (one["world_size"], two["world_size"]) == (1, 2)
        expected = {"ddp": "MULTI_CPU", "fsdp2": "FSDP"}.get(strategy, "DEEPSPEED")
        assert two["distributed_type"].endswith(expected)
        assert two["flops_per_token"] == one["flops_per_token"]  # though ZeRO-3 holds no weight whole
        assert len(two["predictions"]) == 46
        torch.testing.assert_close(
            torch.tensor(two["predictions"]), torch.tensor(one["predictions"]), atol=1e-5, rtol=2e-5
        )
        log_gap = compare_logs(one["log"], two["log"], kind)
        reference, weights = weights_of(one_folder / name), weights_of(folder / name)
        assert weights.keys() == reference.keys()
        weight_gap = max((weights[key] - reference[key]).abs().max().item() for key in weights)
        assert weight_gap < 1e-5
        assert {weight.dtype for weight in weights.values()} == {torch.float32}
        reward_gap = check_reload(folder / name / "model", two["rewards"], lora)
        if strategy == "fsdp2":
            args = PlanArguments(
                model=name, zero="fsdp", gpus=2, bf16=False, lora_r=4 if lora else None, max_length=64
            )
            args.lora_target_modules = ["q_proj", "v_proj"]
            planned = make_plan(args, CLoudConfig.from_pretrained(folder / name / "model"))
            for part, size in two["bytes"].items():
                assert getattr(planned, part) == pytest.approx(size, rel=0.001), part
        if strategy == "ddp":
            for key, norm in one["norms"].items():
                assert two["norms"][key] == pytest.approx(norm, rel=1e-4, abs=1e-6), key
        print(
            f"{strategy:14} {name:13} loss {log_gap:.1e}  weights {weight_gap:.1e}  reloaded rewards {reward_gap:.1e}"
        )


def compare_logs(one, two, kind):
    """The largest difference of any loss, relative where it is above 1; every metric is compared."""
    losses = ["loss", "pairwise_loss", "train_loss", "eval_pairwise_loss", "grad_norm"]
    others = [
        "accuracy",
        "margin",
        "mean_reward",
        "min_reward",
        "max_reward",
        "reward_std",
        "num_tokens",
        "eval_accuracy",
    ]
    if kind != "classic":
        losses += ["lm_loss", "eval_lm_loss"]
        others += ["critique_length"]
    gaps = {}
    for a, b in zip(one, two, strict=True):
        assert a["step"] == b["step"]
        for metric in {*losses, *others} & set(a):
            gaps[metric] = max(gaps.get(metric, 0.0), abs(a[metric] - b[metric]) / max(1.0, abs(a[metric])))
    assert gaps.keys() == {*losses, *others}
    for metric, gap in gaps.items():
        # The norm before clipping is large
        assert gap < (1e-4 if metric == "grad_norm" else 1e-5), metric
    return max(gap for metric, gap in gaps.items() if "loss" in metric)


@torch.no_grad()
def check_reload(folder, rewards, lora):
    """A saved model gives the rewards that the trained one gave."""
    config = json.loads((folder / "config.json").read_text())
    if lora:
        model, tokenizer = load_reward_model(str(folder))
    else:
        classes = {
            "AutoConfig": "configuration_cloud.CLoudConfig",
            "AutoModel": "modeling_cloud.CLoudForRewardModeling",
        }
        assert config["architectures"] == ["CLoudForRewardModeling"] and classes.items() <= config["auto_map"].items()
        for file in ("modeling_cloud.py", "generation.py", "configuration_cloud.py", "tokenizer.json"):
            assert (folder / file).exists(), file
        assert not list(folder.glob("_fsdp*"))
        model = AutoModel.from_pretrained(folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) <= model.config.text_config.vocab_size
    batch = torch.load(folder.parent / "batch.pt")
    again = model(**batch).logits[:, 0]
    gap = (again - torch.tensor(rewards)).abs().max().item()
    assert gap < 1e-5
    return gap
