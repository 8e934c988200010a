"""Train a few steps, save, and write what came out; run alone or under torchrun: `train_for_test.py SPEC`."""

import gc
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from datasets import Dataset
from peft import LoraConfig
from torch.distributed.tensor import DTensor
from transformers import AutoTokenizer, TrainerCallback

from cloud_hf import CLoudOutcomeConfig, CLoudOutcomeTrainer, CLoudTrainer, CLoudTrainingConfig


DS_CONFIGS = Path(__file__).parents[2] / "ds_configs"


class Observe(TrainerCallback):
    """Keeps the gradient's norm in the first step, before clipping, and tells the step it is at."""

    def __init__(self, folder: Path):
        self.folder, self.norms = folder, {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step == 0:
            self.norms = {name: p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None}

    def on_step_end(self, args, state, control, **kwargs):
        if args.process_index == 0:
            part = self.folder / "step.part"
            part.write_text(str(state.global_step))
            part.replace(self.folder / "step")


def start_processes(strategy: str):
    """DeepSpeed on gloo, and none of its own operations, which would have to be compiled first."""
    if strategy.startswith("zero"):
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        PartialState(cpu=True)
        deepspeed.init_distributed("gloo", auto_mpi_discovery=False)


def name_strategy(strategy: str):
    """accelerate leaves DeepSpeed and FSDP2 out on a CPU, unless its state says otherwise beforehand."""
    AcceleratorState._reset_state()  # of the run before
    if strategy not in ("single", "ddp"):
        kind = DistributedType.MULTI_GPU if strategy == "fsdp2" else DistributedType.DEEPSPEED
        PartialState(cpu=True)._shared_state["distributed_type"] = kind


def strategy_options(strategy: str, deepspeed: dict) -> dict:
    options = {"ddp_backend": "gloo"} if strategy == "ddp" else {}
    if strategy not in ("single", "ddp"):
        options["accelerator_config"] = {"use_configured_state": True}
    if strategy.startswith("zero"):
        options["deepspeed"] = {**json.loads((DS_CONFIGS / f"{strategy}.json").read_text()), **deepspeed}
    return options


def train(spec: dict, run: dict, rows: Dataset) -> dict:
    folder = Path(spec["output_dir"], run["name"])
    defaults = {
        "max_steps": 9, "per_device_train_batch_size": spec["batch_size"], "gradient_accumulation_steps": 2,
        "logging_steps": 1, "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": [],
        "save_strategy": "no", "disable_tqdm": True, "learning_rate": 1e-3, "center_rewards_coefficient": 0.1,
        "adam_epsilon": 1e-5,
    }  # fmt: skip
    name_strategy(spec["strategy"])
    options = strategy_options(spec["strategy"], spec.get("deepspeed", {}))
    config, make_trainer = (
        (CLoudOutcomeConfig, CLoudOutcomeTrainer) if run.get("outcome") else (CLoudTrainingConfig, CLoudTrainer)
    )
    args = config(str(folder), **{**defaults, **options, **run.get("options", {})})
    folder.mkdir(parents=True, exist_ok=True)
    observe = Observe(folder)
    tokenizer = AutoTokenizer.from_pretrained(run["base"])
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]) if run.get("lora") else None
    evaluated = rows.select(range(23)) if args.eval_strategy != "no" else None
    trainer = make_trainer(
        run["base"], args, train_dataset=rows, eval_dataset=evaluated, processing_class=tokenizer, callbacks=[observe],
        peft_config=lora,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=run.get("resume"))
    trainer.save_model(str(folder / "model"))
    held = stored_bytes(trainer) if spec["strategy"] == "fsdp2" else None  # before FSDP gathers parameters to predict
    return {
        "log": trainer.state.log_history,
        "norms": observe.norms,
        "world_size": args.world_size,
        "distributed_type": str(trainer.accelerator.distributed_type),
        "rewards": rewards_of(trainer),
        "predictions": trainer.predict(trainer.eval_dataset).predictions.tolist() if evaluated else None,
        "flops_per_token": trainer._flops_per_token,
        "bytes": held,
    }


def stored_bytes(trainer: CLoudTrainer) -> dict[str, int]:
    """What this process holds of parameters and of AdamW's moments, under FSDP2."""
    moments = [state[name] for state in trainer.optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    held = {"parameters": trainer.model.parameters(), "optimizer": moments}
    return {
        name: sum((t.to_local() if isinstance(t, DTensor) else t).nbytes for t in tensors)
        for name, tensors in held.items()
    }


@torch.no_grad()
def rewards_of(trainer: CLoudTrainer) -> list[float]:
    """What the trained model says of the first rows; every rank computes all, as sharded weights need."""
    collator = replace(trainer.data_collator, padding_free=False, shared_prompt=False)
    batch = collator([trainer.train_dataset[i] for i in range(4)])
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    if trainer.is_world_process_zero():
        torch.save(inputs, Path(trainer.args.output_dir, "batch.pt"))
    trainer.model_wrapped.eval()
    return trainer.model_wrapped(**inputs).logits[:, 0].tolist()


def main(spec: dict):
    start_processes(spec["strategy"])
    rows = Dataset.from_list(json.loads(Path(spec["rows"]).read_text()))
    for run in spec["runs"]:
        result = train(spec, run, rows)
        if PartialState().is_main_process:
            Path(spec["output_dir"], run["name"], "result.json").write_text(json.dumps(result))
        gc.collect()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
