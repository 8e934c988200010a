"""A model trained again under its old path, between two equal commands: no command that keeps scores or critiques mixes both."""

import importlib
import json

import pytest
import torch
from benchmark_files import write_rows
from models_for_tests import make_model, save_language_model
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers_for_tests import make_tokenizer
from transformers import AutoModelForCausalLM

from cloud_hf.commands import best_of_n, evaluate_rewards
from cloud_hf.data.journal import JournalError, key_of
from cloud_hf.evaluation.journaled_scorer import open_score_journal
from cloud_hf.serving.client import ServedModel


class Reached(Exception):
    """The command would now use the model."""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_language_model(tmp_path_factory.mktemp("base"))


@pytest.fixture
def data(tmp_path):
    pair = {"prompt": "2+2?", "chosen": "4", "rejected": "5", "responses": ["4", "5"], "correct": [True, False]}
    return write_rows(tmp_path / "rows.jsonl", [pair])


def save_model(kind, base, folder):
    """A reward model in bfloat16 with a float32 head, as training saves it; a language model; or an adapter of one."""
    if kind == "cloud":
        make_model(base, dtype=torch.bfloat16).save_pretrained(folder)
    elif kind == "language model":
        AutoModelForCausalLM.from_pretrained(base).save_pretrained(folder)
    else:
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(target_modules=["q_proj"]))
        model.save_pretrained(folder)
    make_tokenizer("llama3").save_pretrained(folder)
    return str(folder)


def train_again(folder):
    """Change the smallest floating-point tensor alone, so that every file keeps its size."""
    [path] = folder.glob("*.safetensors")
    weights = load_file(path)
    smallest = min(weights, key=lambda name: weights[name].numel())
    weights[smallest] = weights[smallest] + 1
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize("backend", ["transformers", "vllm", "server"])
@pytest.mark.parametrize(
    ("command", "kind", "arguments"),
    [
        (evaluate_rewards, "journal", evaluate_rewards.EvaluationArguments),
        (best_of_n, "best_of_n_journal", best_of_n.BestOfNArguments),
    ],
)
def test_scores(command, kind, arguments, backend, base, data, tmp_path, monkeypatch):
    def reached(*_, **__):
        raise Reached

    monkeypatch.setattr(command, "open_scorer", reached)
    served = ServedModel("cloud", True, None)
    monkeypatch.setattr("cloud_hf.evaluation.journaled_scorer.connect", lambda *_: (None, served))
    name = save_model("cloud", base, tmp_path / "model")
    server = {"server_url": ["http://127.0.0.1:9"]} if backend == "server" else {}
    args = arguments(
        models=[name], dataset_name=[str(data)], output_dir=str(tmp_path / "out"), backend=backend, **server
    )
    with open_score_journal(kind, name, "model", args, command.SETTINGS) as journal:
        journal.add(key_of("a chat"), {"rewards": [1.0]})
    with pytest.raises(Reached):
        command.main(args)
    train_again(tmp_path / "model")
    with pytest.raises(JournalError, match="has changed since it was scored"):
        command.main(args)


SERVER = {"base_url": ["http://127.0.0.1:9/v1"]}


@pytest.mark.parametrize(
    ("builder", "arguments", "kind", "options"),
    [
        ("self_critiques", "SelfCritiqueArguments", "cloud", {}),
        ("self_critiques", "SelfCritiqueArguments", "language model", {}),
        ("self_critiques", "SelfCritiqueArguments", "adapter", {}),
        ("self_critiques", "SelfCritiqueArguments", "cloud", {"backend": "vllm"}),
        (
            "self_critiques",
            "SelfCritiqueArguments",
            "cloud",
            {"backend": "server", "server_url": "http://127.0.0.1:9"},
        ),
        ("self_critiques", "SelfCritiqueArguments", "language model", SERVER),
        ("ray", "RayCritiqueArguments", "cloud", {}),
        ("ray", "RayCritiqueArguments", "language model", {}),
    ],
)
def test_critiques(builder, arguments, kind, options, base, data, tmp_path, monkeypatch):
    if builder == "ray":
        pytest.importorskip("ray", reason="needs Ray: `pip install 'ray[data]==2.60.0'`")
    module = importlib.import_module(f"cloud_hf.data.builders.{builder}")
    folders = []

    def keep(build, folder, *_):
        folders.append(folder)
        if asynchronous := getattr(build, "close", None):
            asynchronous()

    monkeypatch.setattr(module, "run_builder", keep)
    name = save_model(kind, base, tmp_path / "model")
    args = getattr(module, arguments)(
        model_name_or_path=name, dataset_name=str(data), output_dir=str(tmp_path / "out"), **options
    )
    for _ in range(2):
        module.main(args)
        with folders[-1].open_journal() as journal:
            journal.add(key_of("a critique"), [[1, 2], "stop"])
    train_again(tmp_path / "model")
    module.main(args)
    with pytest.raises(JournalError, match="`model_version` was"):
        folders[-1].open_journal()


def test_an_adapter_over_a_base_that_was_trained_again(base, data, tmp_path, monkeypatch):
    """The adapter names its base by a path from its own folder."""
    save_model("language model", base, tmp_path / "base")
    save_model("adapter", tmp_path / "base", tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": "../base"}))
    module = importlib.import_module("cloud_hf.data.builders.self_critiques")
    folders = []
    monkeypatch.setattr(module, "run_builder", lambda build, folder, *_: folders.append(folder))
    args = module.SelfCritiqueArguments(
        model_name_or_path=str(tmp_path / "adapter"), dataset_name=str(data), output_dir=str(tmp_path / "out")
    )
    module.main(args)
    with folders[-1].open_journal() as journal:
        journal.add(key_of("a critique"), [[1, 2], "stop"])
    train_again(tmp_path / "base")
    module.main(args)
    with pytest.raises(JournalError, match="`model_version` was"):
        folders[-1].open_journal()
