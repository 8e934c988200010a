"""The code blocks of README and docs, and tiny models and data under the names that the pages use."""

import json
import re
import shlex
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path


ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "CONTRIBUTING.md", "ds_configs/README.md", "examples/configs/README.md", "spaces/demo/README.md"]
PAGES += sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))
FENCE = re.compile(r"^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """
    A fenced block of code.

    Args:
        page (`str`): File, relative to the repository.
        line (`int`): Line of its first line of code, from 1.
        language (`str`): The word behind the fence.
        text (`str`): The code.
    """

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    def commands(self) -> list[list[str]]:
        """Return the commands of a shell block as words: continued lines joined, comments removed."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks(*languages: str) -> list[Block]:
    """Return the blocks of all pages, in order."""
    found = []
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf8")
        for match in FENCE.finditer(text):
            if match["language"] in languages:
                line = text[: match.start("text")].count("\n") + 1
                found.append(Block(page, line, match["language"], match["text"]))
    return found


def option(command: list[str], name: str) -> str | None:
    """Return the value of an option, or `None`."""
    return command[command.index(name) + 1] if name in command else None


# ---------------------------------------------------------------------------------------------------- models and data


@cache
def make_world(folder: Path) -> Path:
    """Write every model and dataset that the pages name, and links to the scripts."""
    for name in ("examples", "ds_configs", "spaces", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    _write_models(folder)
    _write_data(folder)
    return folder


def copy_world(source: Path, folder: Path) -> Path:
    """Give a page a world that its commands may write into."""
    shutil.copytree(source, folder, symlinks=True)
    return folder


def _write_models(folder: Path):
    import torch
    from critics_for_tests import save_critic
    from models_for_tests import make_model, save_language_model, save_published
    from transformers import AutoTokenizer, LlamaForCausalLM

    from cloud_hf.data.shell_game import build_model_config, build_tokenizer

    long = {"max_position_embeddings": 4096}
    for name in (
        "Qwen/Qwen3-0.6B",
        "Qwen/Qwen3-1.7B",
        "meta-llama/Meta-Llama-3-70B",
    ):
        save_language_model(folder / name, **long)
    save_language_model(folder / "HuggingFaceTB/SmolLM2-135M-Instruct", family="chatml", **long)
    base = save_language_model(folder / "meta-llama/Meta-Llama-3-8B", **long)
    _end_critiques_soon(save_published(folder / "ankner/Llama3-8B-CLoud-RM", base), base)
    save_critic(folder / "critic-sft", **long)
    tokenizer = AutoTokenizer.from_pretrained(base)
    for seed, (name, critique) in enumerate({"cloud-rm": True, "classic-rm": False}.items()):
        make_model(folder / "critic-sft", seed=seed, critique=critique).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    _save_scalar_model(folder / "scalar-rm", base)
    torch.manual_seed(0)
    tokenizer, run = build_tokenizer(), folder / "runs/quickstart"
    language_model = LlamaForCausalLM(build_model_config(tokenizer))
    language_model.save_pretrained(run / "critique-sft")
    tokenizer.save_pretrained(run / "critique-sft")
    for name, critique in (("cloud", True), ("classic", False)):
        model = make_model(run / "critique-sft", critique=critique)
        with torch.no_grad():  # so that critiques end soon
            model.get_output_embeddings().weight[model.config.critique_end_token_id] *= 3
        model.save_pretrained(run / name)
        tokenizer.save_pretrained(run / name)


def _save_scalar_model(folder: Path, base: Path):
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    config = AutoConfig.from_pretrained(base, num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)


def _end_critiques_soon(published: Path, base: Path):
    from safetensors.torch import load_file, save_file

    from cloud_hf import CLoudForRewardModeling

    file = published / "model.safetensors"
    weights = load_file(file)
    end = CLoudForRewardModeling.config_from_base(base).critique_end_token_id
    weights["reward_base_model.lm_head.weight"][end] *= 3
    save_file(weights, file, metadata={"format": "pt"})


def _write_data(folder: Path):
    from datasets import Dataset

    from cloud_hf.data.shell_game import preference_rows

    pairs = [
        {
            "id": f"pair-{i}", "subset": "alpacaeval-easy", "prompt": f"What is {i} + 30?", "chosen": f"It is {i + 30}.",
            "rejected": f"It is {i}.", "chosen_feedback": "Right, and clear.", "rejected_feedback": "Wrong sum.",
        }
        for i in range(8)
    ]  # fmt: skip
    for name in ("pairs.jsonl", "heldout.jsonl", "oracle.jsonl", "reward_bench.jsonl"):
        _write_rows(folder / name, pairs)
    Dataset.from_list(pairs).save_to_disk(folder / "self-critiques")
    candidates = [
        {"prompt": row["prompt"], "responses": [row["chosen"], row["rejected"]], "correct": [True, False]}
        for row in pairs
    ]
    _write_rows(folder / "candidates.jsonl", candidates)
    responses = [{"prompt": row["prompt"], "response": row[side]} for row in pairs for side in ("chosen", "rejected")]
    _write_rows(folder / "responses.jsonl", responses)
    prompts = [{"question": f"Which of the numbers {i} and {i + 1} is larger, and why is that so?"} for i in range(6)]
    _write_rows(folder / "a.jsonl", prompts[:3])
    Dataset.from_list(prompts[3:]).save_to_disk(folder / "org/set")
    ratings = [
        {"prompt": pair["prompt"], "response": pair[side], "helpfulness": n}
        for pair in pairs
        for n, side in ((3, "chosen"), (1, "rejected"))
    ]
    Dataset.from_list(ratings).save_to_disk(folder / "nvidia/HelpSteer2")
    feedback = [{"instruction": f"Name {i} rivers in Egypt."} for i in range(3)]
    interact = [{"trajectory": [{"from": "user", "value": f"Solve {i}x = {7 * i}."}]} for i in range(3)]
    Dataset.from_list(feedback).save_to_disk(folder / "openbmb/UltraFeedback")
    Dataset.from_list(interact).save_to_disk(folder / "openbmb/UltraInteract_pair")
    Dataset.from_list(list(preference_rows(4, "test"))).save_to_disk(folder / "runs/quickstart/data/pairs")


def _write_rows(path: Path, rows: list[dict]):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf8")
