"""
Stage 3: train a CLoud reward model, Bradley-Terry loss plus λ times the critique LM loss.

Rows have the columns prompt, chosen, rejected, chosen_feedback, rejected_feedback; in the paper the critiques are the
model's own, written by build_self_critiques.py with the model of stage 1, from which this stage starts.

torchrun --nproc_per_node 8 examples/train_cloud.py --config examples/configs/llama3-8b/cloud.yaml \
    --dataset_name self-critiques --deepspeed ds_configs/zero2.json

zero1.json, zero3.json and zero3_offload.json go in its place; without --deepspeed it is DDP, for models that fit on one GPU. FSDP2:

accelerate launch --config_file ds_configs/accelerate_fsdp2.yaml examples/train_cloud.py \
    --config examples/configs/llama3-8b/cloud.yaml --dataset_name self-critiques

On several nodes, the same line on each (Slurm: after `srun`, in a job with one task per node); HEAD is one's address:

torchrun --nnodes 2 --nproc_per_node 8 --rdzv_backend c10d --rdzv_endpoint HEAD:29500 examples/train_cloud.py \
    --config examples/configs/llama3-8b/cloud.yaml --dataset_name self-critiques --deepspeed ds_configs/zero3.json

ds_configs/README.md says which to take. `--resume_from_checkpoint true` goes on after a kill.

On a CPU, with a small model:

python examples/train_cloud.py --model_name_or_path critic-sft --dataset_name self-critiques \
    --output_dir cloud-rm --use_cpu --bf16 False --max_length 1024 --per_device_train_batch_size 2 --max_steps 20
"""

from trl import TrlParser, get_peft_config, get_quantization_config

from cloud_hf import CLoudTrainer, CLoudTrainingConfig
from cloud_hf.training.arguments import (
    DataArguments,
    RewardModelConfig,
    checkpoint_to_resume,
    load_tokenizer,
    model_init_kwargs,
)


ARGUMENTS = (DataArguments, CLoudTrainingConfig, RewardModelConfig)


def main(data_args: DataArguments, training_args: CLoudTrainingConfig, model_args: RewardModelConfig):
    training_args.model_init_kwargs = model_init_kwargs(model_args, training_args)
    train_dataset, eval_dataset = data_args.load(training_args.eval_strategy)
    trainer = CLoudTrainer(
        model_args.model_name_or_path,
        training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=load_tokenizer(model_args, training_args),
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    trainer.train(resume_from_checkpoint=checkpoint_to_resume(training_args))
    trainer.save_model()
    trainer.save_state()
    trainer.create_model_card(dataset_name=data_args.dataset_name)
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=data_args.dataset_name)


if __name__ == "__main__":
    main(*TrlParser(ARGUMENTS).parse_args_and_config())
