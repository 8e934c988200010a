"""
Stage 1: teach a language model to write critiques, by supervised fine-tuning on oracle critiques.

Rows have the columns prompt, chosen, rejected, chosen_feedback, rejected_feedback; the critiques of both responses are
learned, and only the critiques and their end of turn carry loss.

torchrun --nproc_per_node 8 examples/train_critique_sft.py --config examples/configs/llama3-8b/critique_sft.yaml \
    --dataset_name pairs.jsonl --deepspeed ds_configs/zero2.json

zero1.json, zero3.json and zero3_offload.json go in its place; without --deepspeed it is DDP, for models that fit on one GPU. FSDP2:

accelerate launch --config_file ds_configs/accelerate_fsdp2.yaml examples/train_critique_sft.py \
    --config examples/configs/llama3-8b/critique_sft.yaml --dataset_name pairs.jsonl

On several nodes, the same line on each (Slurm: after `srun`, in a job with one task per node); HEAD is one's address:

torchrun --nnodes 2 --nproc_per_node 8 --rdzv_backend c10d --rdzv_endpoint HEAD:29500 examples/train_critique_sft.py \
    --config examples/configs/llama3-8b/critique_sft.yaml --dataset_name pairs.jsonl --deepspeed ds_configs/zero3.json

ds_configs/README.md says which to take. `--resume_from_checkpoint true` goes on after a kill.

On a CPU, with a small model:

python examples/train_critique_sft.py --model_name_or_path Qwen/Qwen3-0.6B --dataset_name pairs.jsonl \
    --output_dir critic-sft --use_cpu --bf16 False --max_length 1024 --per_device_train_batch_size 2 --max_steps 20
"""

from dataclasses import dataclass, field

from accelerate.utils import is_peft_model
from datasets import Dataset
from trl import TrlParser

from cloud_hf import CLoudConfig
from cloud_hf.critique_format import format_class, pin_date
from cloud_hf.loading import read_model_config, record_base
from cloud_hf.training.arguments import (
    DataArguments,
    TrainedModelConfig,
    checkpoint_to_resume,
    load_tokenizer,
    model_init_kwargs,
)
from cloud_hf.training.encoding import encode_critiques
from cloud_hf.training.lora import model_for_sft
from cloud_hf.training.resume import check_launch
from cloud_hf.training.sft import CritiqueSFTConfig, CritiqueSFTTrainer


@dataclass
class CritiqueArguments:
    """How a critique is asked for; use the same values in every stage."""

    critique_prompt: str | None = field(default=None, metadata={"help": "Text that opens the critique turn."})
    critique_role: str = field(default="user", metadata={"help": "Role of the critique turn: user or assistant."})
    keep_thinking: bool = field(default=False, metadata={"help": "Show <think> blocks the template would drop."})
    format: str = field(default="cloud", metadata={"help": "Spelling of conversations: cloud or reference."})
    overlong_policy: str = field(
        default="error", metadata={"help": "Over-long rows: error, drop, truncate_prompt or truncate_end."}
    )


ARGUMENTS = (DataArguments, CritiqueArguments, CritiqueSFTConfig, TrainedModelConfig)


def main(
    data_args: DataArguments,
    critique_args: CritiqueArguments,
    training_args: CritiqueSFTConfig,
    model_args: TrainedModelConfig,
):
    check_launch(training_args)
    config = read_model_config(model_args.model_name_or_path, revision=model_args.model_revision)
    if isinstance(config, CLoudConfig):
        raise ValueError(f"{model_args.model_name_or_path} is a CLoud model; this stage starts from a language model.")
    tokenizer = load_tokenizer(model_args, training_args)
    critique_format = format_class(critique_args.format)(
        tokenizer,
        critique_prompt=critique_args.critique_prompt,
        critique_role=critique_args.critique_role,
        keep_thinking=critique_args.keep_thinking,
        chat_template_kwargs=pin_date(tokenizer),
    )

    limits = [training_args.max_length, getattr(config, "max_position_embeddings", None)]
    limit = min((limit for limit in limits if limit), default=None)

    def encode(rows: Dataset, name: str) -> Dataset:
        policy, num_proc = critique_args.overlong_policy, training_args.dataset_num_proc
        return encode_critiques(rows, critique_format, limit, policy, name, num_proc)

    train_rows, eval_rows = data_args.load(training_args.eval_strategy)
    train_dataset = encode(train_rows, "train")
    eval_dataset = None if eval_rows is None else encode(eval_rows, "eval")
    # Every row fits by now; SFTTrainer would cut critiques off in silence
    training_args.max_length = None
    training_args.chat_template_path = None
    training_args.model_init_kwargs = model_init_kwargs(model_args, training_args)
    model_options = model_for_sft(model_args, config, training_args.model_init_kwargs)
    if not isinstance(model_options["model"], str):
        training_args.model_init_kwargs = None  # used
    trainer = CritiqueSFTTrainer(
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        **model_options,
    )
    trainer.train(resume_from_checkpoint=checkpoint_to_resume(training_args))
    trainer.save_model()
    if is_peft_model(trainer.model) and trainer.is_world_process_zero():
        record_base(training_args.output_dir, trainer.model)
    trainer.save_state()
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=data_args.dataset_name)


if __name__ == "__main__":
    main(*TrlParser(ARGUMENTS).parse_args_and_config())
