"""The three training scripts under each strategy, one stage after the other."""

import json
import subprocess
from pathlib import Path

import pytest
from launching import environment, launch, make_rows, torchrun
from transformers import AutoModel, AutoModelForCausalLM

from cloud_hf.training.resume import whole_checkpoints


SCRIPT = Path(__file__).parents[1] / "helpers" / "run_script_for_test.py"


@pytest.mark.parametrize(
    "strategy",
    [
        "fsdp2",
        *(pytest.param(name, marks=pytest.mark.full) for name in ("zero3", "zero2", "zero1", "zero3_offload", "ddp")),
    ],
)
def test_scripts(base_folder, tmp_path, strategy):
    data = tmp_path / "pairs.jsonl"
    data.write_text("\n".join(map(json.dumps, make_rows(16))))
    common = [
        "--dataset_name", data, "--max_length", 300, "--max_steps", 4, "--use_cpu", "--bf16", "False", "--report_to", "none",
        "--per_device_train_batch_size", 2, "--save_strategy", "steps", "--save_steps", 2, "--ddp_backend", "gloo",
    ]  # fmt: skip
    stages = [("critique_sft", base_folder), ("cloud", tmp_path / "critique_sft"), ("classic", base_folder)]
    for name, start in stages:
        options = [f"train_{name}.py", "--model_name_or_path", start, "--output_dir", tmp_path / name, *common]
        if name == "cloud":  # one launch as a user's; the others are forked, which spares them the imports
            command = torchrun(SCRIPT, strategy, *options)
            done = subprocess.run(command, env=environment(strategy), capture_output=True, text=True)
            assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
        else:
            launch(strategy, SCRIPT, strategy, *options).wait()
    launch(strategy, SCRIPT, strategy, *options, "--resume_from_checkpoint", "true").wait()
    AutoModelForCausalLM.from_pretrained(tmp_path / "critique_sft")
    assert AutoModel.from_pretrained(tmp_path / "cloud").config.critique
    assert not AutoModel.from_pretrained(tmp_path / "classic").config.critique
    for name, _ in stages:
        assert [path.name for path in whole_checkpoints(tmp_path / name)] == ["checkpoint-2", "checkpoint-4"]
