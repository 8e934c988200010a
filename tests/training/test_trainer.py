import json

import pytest
import torch
from datasets import Dataset
from models_for_tests import make_model, save_language_model
from peft import AutoPeftModelForSequenceClassification, LoraConfig
from safetensors.torch import load_file
from same_scores import assert_same_scores
from tokenizers_for_tests import make_tokenizer
from torch.nn import functional as F
from trainers_for_tests import KeepGradients, make_rows, make_trainer
from transformers import AutoModel, TrainingArguments
from trl import RewardConfig

from cloud_hf import CLoudForRewardModeling, CLoudTrainer, CLoudTrainingConfig
from cloud_hf.loading import load_merged, load_reward_model
from cloud_hf.training.encoding import SIDES


# -------------------------------------------------------------------------------------------------------- loss


@pytest.mark.parametrize("options", [{}, {"margin": 0.7}])
@pytest.mark.parametrize("center", [None, 0.1])
def test_loss_is_the_papers_joint_loss(base_folder, tmp_path, options, center):
    model = make_model(base_folder)
    rows = make_rows(4, **options)
    trainer = make_trainer(
        model, tmp_path, rows, lm_loss_weight=0.5, bradley_terry_weight=2.0, center_rewards_coefficient=center
    )
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        chosen, rejected = model(**inputs).logits[:, 0].chunk(2)
        logits = model.language_model(**inputs).logits
        expected = 2.0 * -F.logsigmoid(chosen - rejected - options.get("margin", 0.0)).mean()
        if center:
            expected += 2.0 * center * ((chosen + rejected) ** 2).mean()
        expected += 0.5 * F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
        assert trainer.compute_loss(model, dict(batch)).item() == pytest.approx(expected.item(), abs=1e-5)


def test_one_batch_of_eight_is_eight_of_one(base_folder, tmp_path):
    """Losses, metrics and gradients do not depend on how a step is cut: the last of the epoch has 6 rows, as 6, 4 + 2 or ones."""
    logs, gradients = [], []
    for size in (8, 1, 4):
        keep = KeepGradients()
        trainer = make_trainer(
            make_model(base_folder),
            tmp_path,
            make_rows(14),
            callbacks=[keep],
            per_device_train_batch_size=size,
            gradient_accumulation_steps=8 // size,
            max_steps=2,
            learning_rate=0.0,
            max_grad_norm=0.0,
        )
        trainer.train()
        logs.append(trainer.state.log_history[1])
        gradients.append(keep.gradients)
    names = (
        "loss",
        "min_reward",
        "max_reward",
        "pairwise_loss",
        "lm_loss",
        "accuracy",
        "margin",
        "mean_reward",
        "reward_std",
        "critique_length",
    )
    for other_log, other_gradients in zip(logs[1:], gradients[1:], strict=True):
        for name in names:
            assert other_log[name] == pytest.approx(logs[0][name], abs=2e-6), name
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(other_gradients[name], gradient, atol=1e-6, rtol=1e-4)


def test_classic_training_leaves_the_lm_head_alone(base_folder, tmp_path):
    model = make_model(base_folder, critique=False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer = make_trainer(model, tmp_path)
    trainer.train()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == set(before) - {"language_model.lm_head.weight", "reward_head.out_proj.bias"}
    assert "lm_loss" not in trainer.state.log_history[0]


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize(("center", "moves"), [(None, False), (0.0, False), (0.1, True)])
def test_the_heads_last_bias_is_trained_only_where_rewards_are_centred(base_folder, tmp_path, lora, center, moves):
    """Bradley-Terry says nothing about it, and Adam would make steps of rounding errors."""
    peft_config = LoraConfig(r=4) if lora else None
    model = make_model(base_folder)
    torch.nn.init.constant_(model.reward_head.out_proj.bias, 0.25)
    trainer = make_trainer(model, tmp_path, peft_config=peft_config, center_rewards_coefficient=center)
    trainer.train()
    trainer.save_model()
    bias = trainer.model.get_parameter(
        "base_model.model.reward_head.modules_to_save.default.out_proj.bias" if lora else "reward_head.out_proj.bias"
    )
    assert (bias.item() != 0.25) == moves
    assert any("out_proj.bias" in name for name in saved_names(tmp_path))


def saved_names(folder):
    [file] = folder.glob("*model.safetensors")
    return load_file(file)


# ---------------------------------------------------------------------------------------------------- learning


def test_training_learns_and_says_so(base_folder, tmp_path):
    rows = make_rows(16, chosen_finish_reason="stop", rejected_finish_reason="length")
    evaluation = {"easy": make_rows(4), "other": make_rows(6)}
    trainer = make_trainer(
        str(base_folder), tmp_path, rows, max_steps=60, learning_rate=3e-3, eval_dataset=evaluation, eval_strategy="steps",
        eval_steps=30, metric_for_best_model="eval_easy_accuracy", load_best_model_at_end=True, save_strategy="steps",
        save_steps=30,
    )  # fmt: skip
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "pairwise_loss" in entry]
    assert log[-1]["pairwise_loss"] < 0.3 < log[0]["pairwise_loss"]
    assert log[-1]["lm_loss"] < 1.0 < log[0]["lm_loss"]
    assert log[-1]["accuracy"] == 1.0
    assert log[0]["critiques_cut"] == 0.5
    evaluations = [entry for entry in trainer.state.log_history if "eval_other_accuracy" in entry]
    assert len(evaluations) == 2 and {"eval_other_lm_loss", "eval_other_margin"} <= set(evaluations[0])
    assert not any("eval_accuracy" in entry for entry in trainer.state.log_history)
    assert trainer.state.best_metric is not None
    # the mean over an evaluation set does not depend on its batches
    exact = trainer.evaluate(evaluation["other"])
    trainer.args.per_device_eval_batch_size = 4
    again = trainer.evaluate(evaluation["other"])
    for name in ("eval_accuracy", "eval_pairwise_loss", "eval_lm_loss"):
        assert again[name] == pytest.approx(exact[name], abs=1e-5)


@pytest.mark.parametrize("center", [None, 0.1])
def test_evaluation_loss_is_the_joint_loss_whatever_the_batches(base_folder, tmp_path, center):
    rows = make_rows(6)
    rows = rows.map(
        lambda row, i: {"chosen_feedback": row["chosen_feedback"] + " good" * (i == 5) * 40}, with_indices=True
    )
    trainer = make_trainer(
        make_model(base_folder), tmp_path, eval_dataset=rows, lm_loss_weight=0.5, center_rewards_coefficient=center,
        per_device_eval_batch_size=6,
    )  # fmt: skip
    at_once = trainer.evaluate()
    trainer.args.per_device_eval_batch_size = 4
    in_two = trainer.evaluate()
    assert in_two["eval_loss"] == pytest.approx(at_once["eval_loss"], abs=1e-5)
    expected = at_once["eval_pairwise_loss"] + 0.5 * at_once["eval_lm_loss"]
    if center is None:
        assert at_once["eval_loss"] == pytest.approx(expected, abs=1e-6)
    else:
        assert at_once["eval_loss"] > expected and "eval_centring" not in at_once


@pytest.mark.parametrize("flat", [False, True])
def test_predictions_are_every_reward_in_order(base_folder, tmp_path, flat):
    """Chosen before rejected, in the order of the rows, though the last batch is smaller."""
    seen = []

    def preprocess(logits, labels):
        assert isinstance(logits, torch.Tensor) and logits.shape[1:] == (1,)
        return logits

    def compute(made):
        seen.append(made)
        return {"rows": len(made.predictions)}

    trainer = make_trainer(
        make_model(base_folder), tmp_path, eval_dataset=make_rows(7), per_device_eval_batch_size=4, padding_free=flat,
        preprocess_logits_for_metrics=preprocess, compute_metrics=compute,
    )  # fmt: skip
    rows = trainer.eval_dataset
    with torch.no_grad():
        one_by_one = [trainer.model(torch.tensor([row[f"{side}_ids"]])).logits for side in SIDES for row in rows]
    made = trainer.predict(rows)
    torch.testing.assert_close(torch.from_numpy(made.predictions), torch.cat(one_by_one), atol=1e-5, rtol=0)
    assert trainer.evaluate()["eval_rows"] == 14
    trainer.predict(make_rows(7))  # not yet encoded
    assert len(seen) == 3 and all((one.predictions == made.predictions).all() for one in seen)


def test_dropout_whose_rate_is_a_number_is_off(tmp_path):
    base = save_language_model(tmp_path / "base", attention_dropout=0.5)
    for disable_dropout in (True, False):
        trainer = make_trainer(str(base), tmp_path, disable_dropout=disable_dropout)
        [batch] = [next(iter(trainer.get_train_dataloader()))]
        trainer.model.train()
        first, second = (trainer.compute_loss(trainer.model, dict(batch)) for _ in range(2))
        assert (first.item() == pytest.approx(second.item(), abs=1e-5)) == disable_dropout


def test_a_run_that_starts_again_with_smaller_batches_logs_only_those(base_folder, tmp_path, monkeypatch):
    options = {"max_steps": 2, "logging_steps": 2, "train_sampling_strategy": "sequential"}
    small = make_trainer(make_model(base_folder), tmp_path, per_device_train_batch_size=3, **options)
    small.train()
    trainer = make_trainer(make_model(base_folder), tmp_path, auto_find_batch_size=True, **options)
    compute_loss, calls = trainer.compute_loss, []

    def fail_once(*args, **kwargs):
        calls.append(args)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return compute_loss(*args, **kwargs)

    monkeypatch.setattr(trainer, "compute_loss", fail_once)
    trainer.train()
    expected, found = small.state.log_history[0], trainer.state.log_history[0]
    assert len(calls) == 4 and found["num_tokens"] == expected["num_tokens"]
    assert found["critique_length"] == pytest.approx(expected["critique_length"])


def test_a_routers_loss_is_left_out_with_a_warning(tmp_path, caplog):
    base = save_language_model(
        tmp_path / "base", "mixtral", num_local_experts=2, num_experts_per_tok=1, output_router_logits=True
    )
    make_trainer(str(base), tmp_path)
    assert "does not include the router's load-balancing loss" in caplog.text


def test_metrics_by_batch_get_chosen_before_rejected(base_folder, tmp_path):
    seen = []

    def compute(made, compute_result):
        seen.append(made.predictions)
        return {"batches": len(seen)} if compute_result else {}

    rows, model = make_rows(5), make_model(base_folder)
    options = {"eval_dataset": rows, "per_device_eval_batch_size": 2}
    expected = make_trainer(model, tmp_path / "all", **options)
    expected = torch.from_numpy(expected.predict(expected.eval_dataset).predictions)
    trainer = make_trainer(model, tmp_path / "batch", compute_metrics=compute, batch_eval_metrics=True, **options)
    made = trainer.predict(trainer.eval_dataset)
    torch.testing.assert_close(torch.from_numpy(made.predictions), expected, atol=1e-5, rtol=0)
    halves = [batch.chunk(2) for batch in seen]
    by_batch = torch.cat([torch.cat(side) for side in zip(*halves, strict=True)])
    torch.testing.assert_close(by_batch, expected, atol=1e-5, rtol=0)
    assert made.metrics["test_batches"] == 3


def test_saved_model_scores_like_the_trained_one(base_folder, tmp_path):
    trainer = make_trainer(str(base_folder), tmp_path)
    trainer.train()
    trainer.save_model()
    model, tokenizer = load_reward_model(str(tmp_path))
    scores = model.score(["x"], ["y"], tokenizer, max_new_tokens=8)
    assert_same_scores(scores, trainer.model.score(["x"], ["y"], make_tokenizer("llama3"), max_new_tokens=8))
    assert isinstance(AutoModel.from_pretrained(tmp_path), CLoudForRewardModeling)
    trainer.create_model_card(dataset_name="org/data")
    card = (tmp_path / "README.md").read_text()
    assert f"AutoModel.from_pretrained({tmp_path.name!r}, trust_remote_code=True)" in card
    assert str(tmp_path.parent) not in card and "SchedulerType" not in card and ", linear" in card
    # Pipelines for texts write no critique
    assert "pipeline_tag" not in card and "cloud_hf.rl.trl.cloud_reward" in card
    assert "- org/data" in card and "| λ (weight of the critique LM loss) | 1.25 |" in card
    assert "on training rows: loss" in card and "Not evaluated on held-out rows" in card


@pytest.mark.parametrize("critique", [True, False])
def test_resumed_is_uninterrupted(base_folder, tmp_path, critique):
    options = {
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 3,
        "critique": critique,
        "lr_scheduler_type": "cosine",
    }

    def make(name):
        return make_trainer(make_model(base_folder, critique=critique), tmp_path / name, **options)

    whole = make("whole")
    whole.train()
    resumed = make("resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-3"))
    for (name, a), b in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b), name
    last = [[e["loss"] for e in t.state.log_history if "loss" in e][-3:] for t in (whole, resumed)]
    assert last[0] == last[1]


@pytest.mark.parametrize("targets", [None, ["q_proj", "v_proj"], "all-linear"])
def test_lora_trains_the_head_and_loads_by_its_folder(base_folder, tmp_path, targets):
    config = LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM")
    trainer = make_trainer(str(base_folder), tmp_path, peft_config=config, learning_rate=1e-2)
    head = trainer.model.base_model.model.reward_head.modules_to_save["default"].dense.weight.detach().clone()
    trainer.train()
    trainer.save_model()
    trained = trainer.model.base_model.model.reward_head.modules_to_save["default"].dense.weight
    assert not torch.equal(head, trained)
    assert not (tmp_path / "model.safetensors").exists() and (tmp_path / "adapter_model.safetensors").exists()
    own_files = [path for path in tmp_path.iterdir() if path.suffix in (".json", ".md", ".jinja")]
    assert not [path for path in own_files if str(base_folder) in path.read_text()]
    with pytest.raises(ValueError, match=r"import 'cloud_hf\.modeling_cloud' which is not in the import allowlist"):
        AutoPeftModelForSequenceClassification.from_pretrained(tmp_path)
    model, tokenizer = load_reward_model(str(tmp_path))
    trainer.create_model_card()
    assert f"load_reward_model({tmp_path.name!r})" in (tmp_path / "README.md").read_text()
    [merged] = model.score(["x"], ["y"], tokenizer, max_new_tokens=8)
    [adapted] = trainer.model.score(["x"], ["y"], tokenizer, max_new_tokens=8)
    assert merged.critique_ids == adapted.critique_ids
    assert merged.reward == pytest.approx(adapted.reward, abs=1e-5)


@pytest.mark.parametrize("by_name", [False, True])
def test_an_adapter_of_a_revision_loads_onto_it(tmp_path, by_name):
    repository = tmp_path / "models--org--base"
    (repository / "refs").mkdir(parents=True)
    for seed, revision in enumerate(("main", "v1")):
        save_language_model(repository / "snapshots" / revision, seed=seed)
        (repository / "refs" / revision).write_text(revision)
    (repository / "snapshots/main/chat_template.jinja").write_text("{{ messages }}")
    options = {"revision": "v1", "cache_dir": str(tmp_path)}
    config = CLoudTrainingConfig(
        str(tmp_path / "run"), model_init_kwargs=options if by_name else None, use_cpu=True, bf16=False, report_to=[]
    )
    trainer = CLoudTrainer(
        "org/base" if by_name else CLoudForRewardModeling.from_base("org/base", **options),
        config,
        train_dataset=make_rows(),
        peft_config=LoraConfig(r=4, target_modules=["q_proj"]),
    )
    trainer.save_model()
    assert trainer.processing_class.chat_template == make_tokenizer("llama3").chat_template
    merged = load_merged(str(tmp_path / "run"), cache_dir=str(tmp_path))
    embeddings = trainer.model.get_input_embeddings().weight
    assert torch.equal(merged.get_input_embeddings().weight, embeddings)


# ---------------------------------------------------------------------------------------------------- refusals


def test_an_adapter_of_a_subfolder_is_refused(tmp_path):
    save_language_model(tmp_path / "base" / "inner")
    model = CLoudForRewardModeling.from_base(tmp_path / "base", subfolder="inner")
    with pytest.raises(ValueError, match=r"from the `subfolder` 'inner' of .* which an adapter cannot record"):
        make_trainer(model, tmp_path, peft_config=LoraConfig(r=4, target_modules=["q_proj"]))


def test_models_that_do_not_fit_are_refused(base_folder, tmp_path, model, classic_model):
    from transformers import AutoModelForCausalLM

    with pytest.raises(ValueError, match="Pass a CLoudForRewardModeling"):
        make_trainer(AutoModelForCausalLM.from_pretrained(base_folder), tmp_path)
    classic_model.save_pretrained(tmp_path / "classic")
    with pytest.raises(ValueError, match="created with critique=False, but `critique` is True"):
        make_trainer(str(tmp_path / "classic"), tmp_path)
    model.save_pretrained(tmp_path / "cloud")
    with pytest.raises(ValueError, match="created with keep_thinking=False, but `keep_thinking` is True"):
        make_trainer(str(tmp_path / "cloud"), tmp_path, keep_thinking=True)
    with pytest.raises(ValueError, match="map-style"):
        make_trainer(model, tmp_path, make_rows().to_iterable_dataset())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"overlong_policy": "cut"}, "`overlong_policy` is 'cut'"),
        ({"lm_loss_weight": -1.0}, "`lm_loss_weight` is -1.0"),
        ({"lm_loss_chunks": 0}, "`lm_loss_chunks` is 0"),
        ({"max_length": 0}, "`max_length` is 0"),
        ({"padding_free": True, "neftune_noise_alpha": 5.0}, "`neftune_noise_alpha` is set, but with `padding_free`"),
        ({"train_sampling_strategy": "group_by_length"}, "`token_budget` to group pairs by length"),
        ({"label_smoothing_factor": 0.1}, "`label_smoothing_factor` is 0.1"),
        ({"bf16_full_eval": True}, "`bf16_full_eval` is on, but it would round the reward head"),
        ({"eval_do_concat_batches": False}, "`eval_do_concat_batches` is False"),
    ],
)
def test_unusable_options_are_refused(tmp_path, options, says):
    with pytest.raises(ValueError, match=says):
        CLoudTrainingConfig(str(tmp_path), **options)


def test_context_is_the_limit_even_when_max_length_is_larger(model, tmp_path):
    rows = Dataset.from_list([*make_rows(2), {**make_rows(1)[0], "prompt": "word " * 600}])
    with pytest.raises(ValueError, match=r"row 2: \d+ tokens with its critique, but the limit is 512"):
        make_trainer(model, tmp_path, rows, max_length=4096)
    trainer = make_trainer(model, tmp_path, rows, max_length=None, overlong_policy="drop")
    assert len(trainer.train_dataset) == 2
    assert json.dumps(trainer.args.to_dict(), default=str)


# ---------------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize("config_class", [RewardConfig, TrainingArguments])
@pytest.mark.parametrize("critique", [True, False])
def test_arguments_of_trl_and_transformers_are_taken(base_folder, tmp_path, config_class, critique):
    """As TRL's own trainers take them. Neither can say which kind of model it trains: the model does."""
    make_model(base_folder, critique=critique).save_pretrained(tmp_path / "model")
    models = {"by path": str(tmp_path / "model"), "in memory": make_model(base_folder, critique=critique)}
    for name, model in models.items():
        args = config_class(
            str(tmp_path / name), max_steps=1, report_to=[], bf16=False, use_cpu=True, gradient_checkpointing=False,
            learning_rate=3e-4, hub_token="secret",
        )  # fmt: skip
        trainer = CLoudTrainer(model, args, train_dataset=make_rows(8), processing_class=make_tokenizer("llama3"))
        trainer.train()
        assert isinstance(trainer.args, CLoudTrainingConfig)
        assert (trainer.args.learning_rate, trainer.args.hub_token, trainer.args.critique) == (
            3e-4,
            "secret",
            critique,
        )
        assert trainer.model.config.critique == critique and trainer.args.lm_loss_weight == 1.25


def test_a_model_folder_that_does_not_exist(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*absent"):
        make_trainer(str(tmp_path / "absent"), tmp_path / "out")
