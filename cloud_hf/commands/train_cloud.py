"""Stage 3: train a CLoud reward model with the Bradley-Terry loss plus λ times the critique LM loss."""

from trl import get_peft_config, get_quantization_config

from ..training import CLoudTrainer, CLoudTrainingConfig
from ..training.arguments import DataArguments, RewardModelConfig, load_tokenizer, model_init_kwargs, model_name
from ..training.resume import check_new_run
from ..training.run import train_and_save


ARGUMENTS = (DataArguments, CLoudTrainingConfig, RewardModelConfig)


def main(
    data_args: DataArguments,
    training_args: CLoudTrainingConfig,
    model_args: RewardModelConfig,
    make_trainer: type[CLoudTrainer] = CLoudTrainer,
):
    check_new_run(training_args)
    training_args.model_init_kwargs = model_init_kwargs(model_args, training_args)
    train_dataset, eval_dataset = data_args.load(training_args.eval_strategy)
    trainer = make_trainer(
        model_name(model_args),
        training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=load_tokenizer(model_args, training_args),
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    trainer.origin.dataset_name = data_args.dataset_name
    trainer.origin.eval_name, trainer.origin.eval_part = data_args.held_out()
    train_and_save(trainer, train_dataset)
    if trainer.is_world_process_zero():
        output = training_args.output_dir
        print(
            f"Wrote the reward model to {output}. Next: cloud-hf evaluate --models {output} --dataset_name HELD_OUT_PAIRS "
            "--output_dir evaluation"
        )
