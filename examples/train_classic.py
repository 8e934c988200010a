"""
The classic arm: a reward model that scores the response at once. Same model class, same trainer, no critique.

Rows have the columns prompt, chosen, rejected.

accelerate launch examples/train_classic.py --config examples/configs/llama3-8b/classic.yaml

On a CPU, with a small model:

python examples/train_classic.py --model_name_or_path Qwen/Qwen3-0.6B --dataset_name pairs.jsonl \
    --output_dir classic-rm --use_cpu --bf16 False --max_length 1024 --per_device_train_batch_size 2 --max_steps 20
"""

import train_cloud
from trl import TrlParser


ARGUMENTS = train_cloud.ARGUMENTS


if __name__ == "__main__":
    data_args, training_args, model_args = TrlParser(ARGUMENTS).parse_args_and_config()
    training_args.critique = False
    train_cloud.main(data_args, training_args, model_args)
