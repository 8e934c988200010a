"""Stage 4 with vLLM: the engine writes with the weights of each step."""

from types import SimpleNamespace

import pytest
import torch
from critics_for_tests import save_critic
from models_for_tests import make_model
from tokenizers_for_tests import make_tokenizer
from trainers_for_tests import make_rows

from cloud_hf import CLoudOutcomeConfig, CLoudOutcomeTrainer
from cloud_hf.generation import CritiqueWriter
from cloud_hf.scores import Sampling
from cloud_hf.training.launch import launch_settings
from cloud_hf.training.outcome_batch import WrittenCritiques


pytest.importorskip("vllm", reason="needs vLLM (`make test` installs it)")


@pytest.fixture(
    scope="module", params=[pytest.param(False, marks=pytest.mark.full), True], ids=["own head", "tied head"]
)
def stage3(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stage3")
    # vLLM's attention on a CPU needs heads of 32
    base = save_critic(folder / "base", head_dim=32, tie_word_embeddings=request.param)
    make_model(base).save_pretrained(folder / "cloud")
    make_tokenizer("llama3").save_pretrained(folder / "cloud")
    return str(folder / "cloud")


@pytest.fixture(autouse=True)
def in_this_process(request, monkeypatch):
    """An engine in this process starts in seconds; `make test-full` also has one in a process of its own, as users do."""
    if "tied head" not in request.node.name:
        yield
        return
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    with torch.compiler.set_stance("force_eager"):
        yield


def make(model, folder, **options):
    defaults = {
        "max_steps": 3, "per_device_train_batch_size": 4, "logging_steps": 1, "learning_rate": 1e-2, "report_to": [],
        "bf16": False, "use_cpu": True, "gradient_checkpointing": False, "disable_tqdm": True, "save_strategy": "no",
        "max_completion_length": 12, "num_generations": 2, "use_vllm": True,
    }  # fmt: skip
    args = CLoudOutcomeConfig(str(folder), **{**defaults, **options})
    return CLoudOutcomeTrainer(model, args, train_dataset=make_rows(), processing_class=make_tokenizer("llama3"))


def test_every_step_writes_with_its_own_weights(stage3, tmp_path):
    trainer = make(stage3, tmp_path)
    write, seen = trainer._write_with_vllm, []

    def compare(prefixes, sampling):
        # Sampled critiques: vLLM read their rewards while it wrote them
        seen.append(write(prefixes, sampling))
        if len(seen) == 2:
            greedy = Sampling(1, 0.0, 12, None)
            model = trainer.model.eval()
            ours = CritiqueWriter(model, trainer.critique_format, greedy, 8, show_progress=False).write(prefixes)
            theirs = trainer._vllm_writer.write(model, prefixes, greedy)
            assert [row[0].critique_ids for row in ours] == [row[0].critique_ids for row in theirs]
        return seen[-1]

    collate, rewards = trainer._collate, []

    def read(rows, samples):
        batch = collate(rows, samples)
        inputs = {
            name: value for name, value in batch.items() if name not in ("counts", "was_cut", "identical_critiques")
        }
        with torch.no_grad():
            output = trainer.model.eval()(**inputs, lm_loss_chunks=1, use_cache=False)
        rewards.append(WrittenCritiques(output, batch["was_cut"]).rewards_2NK.transpose(0, 1).reshape(-1))
        return batch

    trainer._write_with_vllm, trainer._collate = compare, read
    trainer.train()
    assert len(seen) == 3 and trainer._vllm_writer is None
    for samples, expected in zip(seen, rewards, strict=True):
        found = torch.tensor([sample.reward for row in samples for sample in row])
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    spread = torch.stack(rewards)
    assert not torch.allclose(spread[0], spread[2], atol=1e-2)  # the weights have moved


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_completion_length": 100_000}, r"at most \d+ fit"),
        ({"num_generations": 0}, r"`use_vllm` is set, but with `num_generations` 0"),
        ({"vllm_gpu_memory_utilization": 1.5}, r"`vllm_gpu_memory_utilization` is 1.5"),
    ],
)
def test_mistakes_end_with_a_sentence(stage3, tmp_path, options, says):
    with pytest.raises(ValueError, match=says):
        make(stage3, tmp_path, **options)


def test_weights_are_padded_once_however_often_they_are_reloaded(monkeypatch):
    """vLLM registers the same parameters, with the loaders that were set on them, for every reload."""
    from cloud_hf.serving.vllm import model as module

    class Embedding(torch.nn.Module):
        org_vocab_size = 4

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(4, 2))

        def weight_loader(self, param, loaded_weight):
            param.data.copy_(loaded_weight)

    model = module.CLoudForVLLM.__new__(module.CLoudForVLLM)
    torch.nn.Module.__init__(model)
    model.embedding = Embedding()
    monkeypatch.setattr(module, "VocabParallelEmbedding", Embedding)
    monkeypatch.setattr(module, "AutoWeightsLoader", lambda _: SimpleNamespace(load_weights=lambda weights: set()))
    loaders = []
    for rows in (3, 4, 3):  # without and with the row that the plugin adds
        model.load_weights([])
        parameter = model.embedding.weight
        parameter.weight_loader(parameter, torch.ones(rows, 2))
        assert parameter.sum() == 2 * rows
        loaders.append(parameter.weight_loader)
    assert loaders[0] is loaders[1] is loaders[2]


@pytest.mark.parametrize("use_vllm", [True, None])
def test_a_run_is_not_resumed_with_the_other_writer(tmp_path, use_vllm):
    """They draw different samples; checkpoints of earlier releases hold `None`."""
    args = CLoudOutcomeConfig(str(tmp_path), use_cpu=True, bf16=False, use_vllm=bool(use_vllm), report_to=[])
    assert launch_settings(args)["use_vllm"] is use_vllm


def test_adapters_are_refused(stage3, tmp_path):
    from peft import LoraConfig

    args = CLoudOutcomeConfig(str(tmp_path), use_cpu=True, bf16=False, use_vllm=True, beta=0.0, report_to=[])
    with pytest.raises(ValueError, match=r"`use_vllm` needs full fine-tuning"):
        CLoudOutcomeTrainer(
            stage3,
            args,
            train_dataset=make_rows(),
            processing_class=make_tokenizer("llama3"),
            peft_config=LoraConfig(),
        )
