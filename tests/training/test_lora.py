import json
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from models_for_tests import make_model, save_language_model
from peft import AdaLoraConfig, IA3Config, LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file
from tokenizers_for_tests import make_tokenizer
from trainers_for_tests import make_rows, make_trainer
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, BitsAndBytesConfig, pipeline

from cloud_hf import CLoudForRewardModeling
from cloud_hf.loading import adapter_base, load_critic, load_reward_model, record_base
from cloud_hf.training.arguments import RewardModelConfig, TrainedModelConfig
from cloud_hf.training.fsdp import prepare_fsdp2
from cloud_hf.training.lora import model_for_sft


def save_sft_adapter(base, folder, record=True, **options):
    """An adapter of a language model as stage 1 leaves it, and the adapted model."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base)
    options = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False, **options}
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options))
    for name, weight in adapted.named_parameters():
        if weight.requires_grad and name.endswith(".bias"):
            torch.nn.init.normal_(weight)
    adapted.save_pretrained(folder)
    make_tokenizer("llama3").save_pretrained(folder)
    if record:
        record_base(folder, adapted)
    return adapted


@pytest.fixture(scope="module")
def base_with_biases(tmp_path_factory):
    return save_language_model(tmp_path_factory.mktemp("biases"), "qwen2")


@pytest.fixture(scope="module")
def sft(base_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sft")
    return folder, save_sft_adapter(base_folder, folder)


@pytest.fixture(scope="module")
def cloud(base_folder, tmp_path_factory):
    """A trained CLoud adapter, and its trainer."""
    folder = tmp_path_factory.mktemp("cloud")
    trainer = make_trainer(str(base_folder), folder, peft_config=LoraConfig(r=4), learning_rate=1e-2)
    trainer.train()
    trainer.save_model()
    return folder, trainer


def lm_logits(model):
    ids = torch.arange(20)[None]
    with torch.no_grad():
        return model(ids).logits


def assert_same(scores, expected):
    for score, other in zip(scores, expected, strict=True):
        assert score.critique_ids == other.critique_ids
        assert score.reward == pytest.approx(other.reward, abs=1e-5)


@pytest.mark.parametrize("targets", [["lm_head", "q_proj"], ["embed_tokens"]])
def test_an_adapter_of_the_lm_head_or_embeddings_loads(base_folder, tmp_path, targets):
    trainer = make_trainer(str(base_folder), tmp_path, peft_config=LoraConfig(r=4, target_modules=targets))
    trainer.train()
    trainer.save_model()
    model, tokenizer = load_reward_model(str(tmp_path))
    assert_same(
        model.score(["x"], ["y"], tokenizer, max_new_tokens=8),
        trainer.model.score(["x"], ["y"], tokenizer, max_new_tokens=8),
    )


def test_an_adapter_of_one_of_two_tied_layers_is_refused(tmp_path):
    """Merged, it would change the other one, too."""
    tied = save_language_model(tmp_path / "base", tie_word_embeddings=True)
    for target, layer in (("lm_head", "LM head"), ("embed_tokens", "embeddings")):
        with pytest.raises(ValueError, match=f"include the {layer}, but .*share their weights"):
            make_trainer(str(tied), tmp_path, peft_config=LoraConfig(r=4, target_modules=[target]))


@pytest.mark.parametrize(
    "options", [{"modules_to_save": ["reward_head", "lm_head"]}, {"trainable_token_indices": [5]}]
)
def test_copies_of_tied_layers_are_refused_under_fsdp2(tmp_path, options):
    tied = save_language_model(tmp_path / "base", tie_word_embeddings=True)
    trainer = make_trainer(str(tied), tmp_path, peft_config=LoraConfig(r=4, target_modules=["q_proj"], **options))
    accelerator: Any = SimpleNamespace(is_fsdp2=True, mixed_precision="no", num_processes=1)
    with pytest.raises(ValueError, match="FSDP2 cannot shard them in this model, which ties the two"):
        prepare_fsdp2(accelerator, trainer.model)


# ------------------------------------------------------------------------------------------------ from stage to stage


@pytest.mark.parametrize("critique", [True, False])
def test_an_adapter_of_stage_1_goes_on_with_a_head(sft, base_folder, tmp_path, critique):
    folder, sft_model = sft
    trainer = make_trainer(str(folder), tmp_path / "out", critique=critique, learning_rate=1e-2)
    torch.testing.assert_close(lm_logits(trainer.model.base_model.model.language_model), lm_logits(sft_model))
    before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    changed = {name for name, weight in trainer.model.named_parameters() if not torch.equal(weight, before[name])}
    trained = {name for name in before if "lora_" in name or "modules_to_save" in name}
    trained.discard("base_model.model.reward_head.modules_to_save.default.out_proj.bias")
    assert changed == trained and any("reward_head" in name for name in trained)
    trainer.save_model()
    saved = json.loads((tmp_path / "out/adapter_config.json").read_text())
    base = Path(tmp_path / "out", saved["base_model_name_or_path"])
    assert base.samefile(base_folder) and saved["modules_to_save"] == ["reward_head"]
    model, tokenizer = load_reward_model(str(tmp_path / "out"))
    assert_same(
        model.score(["x"], ["y"], tokenizer, max_new_tokens=8),
        trainer.model.score(["x"], ["y"], tokenizer, max_new_tokens=8),
    )


def test_an_adapter_that_stage_1_continues_finds_its_base(base_folder, tmp_path):
    """Its folder is deeper than that of the adapter from which training continues, so the relative location of the base differs."""
    folder = tmp_path / "sft"
    save_sft_adapter(base_folder, folder)
    options = model_for_sft(
        TrainedModelConfig(model_name_or_path=str(folder)), AutoConfig.from_pretrained(base_folder), {}
    )
    options["model"].save_pretrained(tmp_path / "a/b/c")
    record_base(tmp_path / "a/b/c", options["model"])
    assert Path(adapter_base(str(tmp_path / "a/b/c"))[0]).samefile(base_folder)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": r"model\.layers\.1\..*\.(q|k)_proj"},
        {"target_modules": r"^model\.layers\.[^1]\..*\.q_proj"},
        {"exclude_modules": r"model\.layers\.0\..*"},
        {"rank_pattern": {r"^model\.layers\.0\..*": 2}},
        {"alpha_pattern": {r"^model\.layers\.0\..*": 2, "v_proj": 3, r".*\.[^v]_proj": 5}},
        {"alpha_pattern": {r"\w+\.model\.layers\.0\..*": 2}},  # matches nothing in the language model
        {"bias": "all"},
        {"bias": "lora_only"},
    ],
)
def test_every_option_carries_over_from_stage_to_stage(base_with_biases, tmp_path, options):
    sft_model = save_sft_adapter(base_with_biases, tmp_path / "sft", **options)
    config = CLoudForRewardModeling.config_from_base(base_with_biases)
    critic = load_critic(str(tmp_path / "sft"), config).language_model
    torch.testing.assert_close(lm_logits(critic), lm_logits(sft_model), atol=1e-4, rtol=1e-5)
    trainer = make_trainer(str(tmp_path / "sft"), tmp_path / "out", learning_rate=1e-2)
    language_model = trainer.model.get_base_model().language_model
    torch.testing.assert_close(lm_logits(language_model), lm_logits(sft_model))
    trainer.train()
    trainer.save_model()
    merged = load_reward_model(str(tmp_path / "out"))[0].language_model
    torch.testing.assert_close(lm_logits(merged), lm_logits(language_model), atol=1e-4, rtol=1e-5)


def test_training_of_a_reward_models_adapter_goes_on(cloud, tmp_path):
    folder, trained = cloud
    again = make_trainer(str(folder), tmp_path, learning_rate=1e-2)
    before = {name: weight.detach().clone() for name, weight in again.model.named_parameters()}
    for name, weight in trained.model.named_parameters():
        if weight.requires_grad:
            torch.testing.assert_close(before[name], weight.detach())
    again.train()
    assert any(not torch.equal(weight, before[name]) for name, weight in again.model.named_parameters())


def test_an_adapter_of_stage_1_writes_critiques(sft):
    folder, sft_model = sft
    from cloud_hf.data.builders.arguments import CriticArguments

    args = CriticArguments(model_name_or_path=str(folder), dataset_name="d", output_dir="o")
    config = args.read_critic()
    torch.testing.assert_close(lm_logits(load_critic(str(folder), config).language_model), lm_logits(sft_model))


# --------------------------------------------------------------------------------------------------- in every scorer


def test_every_way_to_load_gives_the_same_rewards(cloud):
    import evaluate

    folder, trainer = cloud
    name, tokenizer = str(folder), trainer.processing_class
    prompts, answers = ["What is 2 + 2?", "x"], ["It is 4.", "no"]
    expected = trainer.model.score(prompts, answers, tokenizer, max_new_tokens=8)
    assert_same(AutoModel.from_pretrained(name).score(prompts, answers, tokenizer, max_new_tokens=8), expected)
    judge = pipeline("critique-reward", model=name)
    outputs = judge(
        [{"prompt": prompt, "response": answer} for prompt, answer in zip(prompts, answers, strict=True)],
        max_new_tokens=8,
    )
    metric = evaluate.load(str(Path(__file__).parents[2] / "spaces/cloud_reward"))
    result = metric.compute(prompts=prompts, predictions=answers, model=name, max_new_tokens=8)
    for output, reward, score in zip(outputs, result["rewards"], expected, strict=True):
        assert output["critique"] == score.critique
        assert output["reward"] == pytest.approx(score.reward, abs=1e-5) == reward


def test_the_server_serves_an_adapter(cloud):
    from servers_for_tests import serving

    from cloud_hf.serving.server.app import load_engine
    from cloud_hf.serving.server.command import parse_arguments

    folder, trainer = cloud
    expected = trainer.model.score(["What is 2 + 2?"], ["4"], trainer.processing_class, max_new_tokens=8)
    body = {"inputs": [{"prompt": "What is 2 + 2?", "response": "4"}], "max_new_tokens": 8}
    with serving(load_engine(parse_arguments([str(folder)]))) as (_, http):
        answer = http.post("/v1/rewards", json=body).json()
    assert answer["results"][0]["reward"] == pytest.approx(expected[0].reward, abs=1e-5), answer


# ---------------------------------------------------------------------------------------------------------- QLoRA


@pytest.mark.parametrize("start", ["base", "sft"])
def test_qlora_trains_the_head_in_fp32_over_four_bits(tmp_path, start):
    pytest.importorskip("bitsandbytes")
    from bitsandbytes.nn import Linear4bit

    base = save_language_model(tmp_path / "base", hidden_size=64, intermediate_size=128)  # blocks have 64 weights
    if start == "sft":
        save_sft_adapter(base, tmp_path / "sft")
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="float32")
    name = str(tmp_path / start)
    peft_config = LoraConfig(r=4) if start == "base" else None
    trainer = make_trainer(
        name, tmp_path / "out", peft_config=peft_config, quantization_config=quantization, learning_rate=1e-2
    )
    model = trainer.model.base_model.model
    quantised = {name for name, module in model.named_modules() if isinstance(module, Linear4bit)}
    assert len(quantised) >= 14 and not any("reward_head" in name or "lm_head" in name for name in quantised)
    head = model.reward_head.modules_to_save["default"].dense.weight
    before = head.detach().clone()
    assert head.dtype == torch.float32 and not torch.equal(head, head.bfloat16().float())
    trainer.train()
    assert not torch.equal(before, head) and all("loss" in log for log in trainer.state.log_history[:3])
    trainer.save_model()
    loaded, tokenizer = load_reward_model(str(tmp_path / "out"))
    assert loaded.language_model.lm_head.weight.dtype == torch.float32
    assert not any(isinstance(module, Linear4bit) for module in loaded.modules())
    torch.testing.assert_close(loaded.reward_head.dense.weight, head.detach())
    assert loaded.score(["x"], ["y"], tokenizer, max_new_tokens=4)[0].critique_ids


# --------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"modules_to_save": ["lm_head"]}, "leaves out the reward head"),
        ({"target_modules": ["q_proj", "v_prj"]}, "has 'v_prj', but the model has no such layer.*k_proj"),
        ({"target_modules": "nothing.*"}, "No modules were targeted"),
        ({"lora_bias": True}, r"`lora_bias` is True, but .*0\.self_attn\.q_proj has no bias"),
        ({"layer_replication": [[0, 2], [0, 2]]}, r"`peft_config` has `layer_replication` \[\[0, 2"),
        ({"init_lora_weights": "pissa_niter_4"}, "`peft_config` has `init_lora_weights` 'pissa_niter_4'"),
    ],
)
def test_adapters_that_would_not_train_are_refused(base_folder, tmp_path, options, says):
    with pytest.raises(ValueError, match=says):
        make_trainer(str(base_folder), tmp_path, peft_config=LoraConfig(r=4, **options))


def test_dropout_that_would_be_switched_off_is_refused_before_the_model_loads(base_folder, tmp_path):
    config = LoraConfig(r=4, lora_dropout=0.1)
    with pytest.raises(
        ValueError,
        match=r"`lora_dropout` is 0.1, but `disable_dropout`, which is on by default.*--disable_dropout False",
    ):
        make_trainer("no-such-model", tmp_path, peft_config=config)
    trainer = make_trainer(str(base_folder), tmp_path, peft_config=config, disable_dropout=False)
    rates = {module.p for module in trainer.model.modules() if isinstance(module, torch.nn.Dropout)}
    assert rates == {0.1}


@pytest.mark.parametrize(
    "config",
    [PromptTuningConfig(num_virtual_tokens=4), IA3Config(), AdaLoraConfig(total_step=9), PrefixTuningConfig()],
)
def test_other_kinds_of_adapters_are_refused_before_the_model_loads(tmp_path, config):
    with pytest.raises(ValueError, match=f"`peft_config` is a {config.peft_type.value} adapter; only LoRA"):
        make_trainer("no-such-model", tmp_path, peft_config=config)


def test_other_kinds_of_models_and_folders_are_refused(base_folder, tmp_path):
    config = IA3Config(target_modules=["k_proj"], feedforward_modules=[], modules_to_save=["reward_head"])
    with pytest.raises(ValueError, match="`model` is a IA3 adapter"):
        make_trainer(get_peft_model(make_model(base_folder), config), tmp_path)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base_folder), config).save_pretrained(tmp_path / "ia3")
    model_args = TrainedModelConfig(model_name_or_path=str(tmp_path / "ia3"))
    with pytest.raises(ValueError, match="ia3 is a IA3 adapter"):
        model_for_sft(model_args, AutoConfig.from_pretrained(base_folder), {})


@pytest.mark.parametrize("disable_dropout", [True, False])
def test_dropout_of_an_existing_adapter_is_reported_when_it_is_turned_off(
    base_folder, tmp_path, caplog, disable_dropout
):
    config = LoraConfig(r=4, lora_dropout=0.1, target_modules=["q_proj"], modules_to_save=["reward_head"])
    adapted = get_peft_model(make_model(base_folder), config)
    trainer = make_trainer(adapted, tmp_path, disable_dropout=disable_dropout)
    rates = {module.p for module in trainer.model.modules() if isinstance(module, torch.nn.Dropout)}
    assert rates == {0.0 if disable_dropout else 0.1}
    assert ("created with lora_dropout=0.1, but is trained without" in caplog.text) == disable_dropout


@pytest.mark.parametrize("kind", [TrainedModelConfig, RewardModelConfig])
def test_options_of_an_adapter_need_one(kind):
    """TRL would pass over them and train all weights."""
    for options in ({"lora_r": 8}, {"lora_target_modules": ["q_proj"]}, {"use_dora": True}, {"lora_dropout": 0.2}):
        assert kind(use_peft=True, **options).use_peft
        with pytest.raises(ValueError, match=f"`{next(iter(options))}` is .*without `use_peft` no adapter is created"):
            kind(**options)


def test_quantised_weights_without_an_adapter_are_refused_before_they_load(base_folder, tmp_path):
    with pytest.raises(ValueError, match="cannot be trained: add `--use_peft"):
        make_trainer(str(base_folder), tmp_path, quantization_config=BitsAndBytesConfig(load_in_8bit=True))
    model_args = TrainedModelConfig(model_name_or_path=str(base_folder), load_in_4bit=True)
    with pytest.raises(ValueError, match="cannot be trained: add `--use_peft"):
        model_for_sft(model_args, AutoConfig.from_pretrained(base_folder), {})


def test_a_peft_model_without_the_head_is_refused(base_folder, tmp_path):
    adapted = get_peft_model(make_model(base_folder), LoraConfig(r=4, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="leaves out the reward head"):
        make_trainer(adapted, tmp_path, make_rows(4))


def test_a_new_adapter_of_a_merged_one_is_refused(cloud, sft, base_folder, tmp_path):
    """It would be recorded as an adapter of the base that the other one was merged into."""
    config = CLoudForRewardModeling.config_from_base(base_folder, make_tokenizer("llama3"))
    options = {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["reward_head"]}
    critic = partial(load_critic, config=config)
    for name, load in ((str(cloud[0]), AutoModel.from_pretrained), (str(sft[0]), critic)):
        says = f"base is {name}, an adapter that was merged while loading.*Save the merged model"
        with pytest.raises(ValueError, match=says):
            make_trainer(load(name), tmp_path, peft_config=LoraConfig(**options))
        with pytest.raises(ValueError, match=says):
            make_trainer(get_peft_model(load(name), LoraConfig(**options)), tmp_path)
    model = AutoModel.from_pretrained(str(cloud[0]))
    assert model.name_or_path == str(cloud[0])  # as which the server serves it
    model.save_pretrained(tmp_path / "merged")
    make_trainer(str(tmp_path / "merged"), tmp_path, peft_config=LoraConfig(**options))


def test_only_the_adapter_that_is_saved_is_trained(base_folder, tmp_path):
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["reward_head"])
    adapted = get_peft_model(make_model(base_folder), config)
    adapted.add_adapter("rm", config)
    make_trainer(adapted, tmp_path).save_model()
    load_reward_model(str(tmp_path))
    adapted.set_adapter("rm")
    with pytest.raises(ValueError, match=r"active adapter is 'rm', but .*only the adapter 'default'"):
        make_trainer(adapted, tmp_path)


def test_options_for_another_kind_of_model_are_refused(base_folder, tmp_path):
    adapted = get_peft_model(
        make_model(base_folder), LoraConfig(target_modules=["q_proj"], modules_to_save=["reward_head"])
    )
    with pytest.raises(ValueError, match="is already an adapter"):
        make_trainer(adapted, tmp_path, peft_config=LoraConfig())
    with pytest.raises(ValueError, match="applies only to models loaded by name"):
        make_trainer(make_model(base_folder), tmp_path, quantization_config=BitsAndBytesConfig(load_in_8bit=True))


def test_another_adapter_than_the_one_named_is_refused(sft, tmp_path):
    for options, says in (({"r": 8}, "which has r=4"), ({"r": 4, "target_modules": ["k_proj"]}, "adapts")):
        config = LoraConfig(**{"lora_alpha": 8, **options})
        with pytest.raises(ValueError, match=says):
            make_trainer(str(sft[0]), tmp_path, peft_config=config)


def test_an_adapter_over_another_base_is_refused(sft, cloud, base_folder, tmp_path):
    def with_base(adapter, base, name):
        folder = shutil.copytree(adapter, tmp_path / name)
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(base)}))
        return str(folder)

    other = save_language_model(tmp_path / "other", seed=1)
    wide = save_language_model(tmp_path / "wide", hidden_size=64)
    with pytest.raises(ValueError, match="trained on another base: the weights"):
        load_reward_model(with_base(cloud[0], other, "a"))
    with pytest.raises(ValueError, match="trained on another base: the weights"):
        make_trainer(with_base(sft[0], other, "b"), tmp_path / "out")
    for adapter, name in ((cloud[0], "c"), (sft[0], "d")):
        moved = with_base(adapter, wide, name)
        Path(moved, "base_model.json").unlink()
        with pytest.raises(ValueError, match=r"another base(, in which `hidden_size` was 32|: .*has shape)"):
            make_trainer(moved, tmp_path / "out")
    for base, says in (
        (tmp_path / "absent", "cannot be read|no model"),
        (sft[0], "itself an adapter"),
        ("", "does not name its base model"),
    ):
        moved = with_base(cloud[0], base, f"e{says[:4]}")
        with pytest.raises(ValueError, match=says):
            load_reward_model(moved)
    moved = with_base(cloud[0], shutil.copytree(base_folder, tmp_path / "copy"), "f")
    assert load_reward_model(moved)


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        (
            "adapter_config.json",
            {"base_model_name_or_path": 5},
            "`base_model_name_or_path` is 5; its type must be str",
        ),
        ("adapter_config.json", {"r": "8"}, "`r` is '8'; its type must be int"),
        ("adapter_config.json", {"target_modules": 5}, "`target_modules` is 5"),
        ("adapter_config.json", {"peft_type": 5}, "adapter_config.json cannot be used"),
        ("adapter_config.json", {"peft_type": "UNKNOWN"}, "adapter_config.json cannot be used"),
        ("base_model.json", {"version": None}, "is not a valid record of an adapter's base"),
    ],
)
def test_a_wrong_type_in_an_adapter_is_a_sentence(cloud, tmp_path, file, content, says):
    folder = shutil.copytree(cloud[0], tmp_path / "adapter")
    config = json.loads((folder / file).read_text())
    if config.get("base_model_name_or_path"):
        config["base_model_name_or_path"] = str((cloud[0] / config["base_model_name_or_path"]).resolve())
    (folder / file).write_text(json.dumps(config | content))
    if file == "base_model.json":
        config = json.loads((folder / "adapter_config.json").read_text())
        base = str((cloud[0] / config["base_model_name_or_path"]).resolve())
        (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": base}))
    with pytest.raises(ValueError, match=says):
        load_reward_model(str(folder))


def test_weights_of_an_adapter_are_safetensors_of_its_folder(cloud, tmp_path):
    folder = shutil.copytree(cloud[0], tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    base = str((cloud[0] / config["base_model_name_or_path"]).resolve())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": base}))
    weights = folder / "adapter_model.safetensors"
    weights.rename(tmp_path / "elsewhere")
    weights.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is a link to"):
        load_reward_model(str(folder))
    torch.save(load_file(weights), folder / "adapter_model.bin")
    weights.unlink()
    with pytest.raises(ValueError, match=r"has no adapter_model.safetensors. Pickled"):
        load_reward_model(str(folder))


def test_what_is_saved_is_small(cloud):
    names = load_file(cloud[0] / "adapter_model.safetensors")
    assert all("lora_" in name or "reward_head" in name for name in names)
