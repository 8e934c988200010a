"""
Merge a LoRA adapter into its base: a plain checkpoint with tokenizer and chat template, which AutoModel, vLLM and every
script here load without PEFT. The adapter may be a reward model's (train_cloud.py, train_classic.py) or that of stage 1.

Scripts that score take adapters as they are; this is for publishing, for full fine-tuning of the next stage, and for
clusters. An adapter that was trained over a quantised base (QLoRA) is merged into the base's own weights.

python examples/merge_adapter.py --model_name_or_path cloud-lora --output_dir cloud-merged
"""

from dataclasses import dataclass, field
from pathlib import Path

from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import TrlParser

from cloud_hf import CLoudConfig
from cloud_hf.loading import adapter_base, is_adapter, load_merged, read_model_config, tokenizer_source


@dataclass
class MergeArguments:
    """
    What is merged into what.

    Parameters:
        model_name_or_path (`str`):
            Hub id or folder of the adapter.
        output_dir (`str`):
            New folder.
        base_model_name_or_path (`str`, *optional*):
            Where the base is, if no longer where it was in training. It is compared with what the adapter knows of it.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Data type of the merged weights: the base's, or one by name. The reward head stays in float32.
    """

    model_name_or_path: str = field(metadata={"help": "Hub id or folder of the adapter."})
    output_dir: str = field(metadata={"help": "New folder."})
    base_model_name_or_path: str | None = field(default=None, metadata={"help": "Where the base is, if it has moved."})
    dtype: str = field(default="auto", metadata={"help": "Data type of the merged weights."})


ARGUMENTS = (MergeArguments,)


def main(args: MergeArguments):
    name, output = args.model_name_or_path, Path(args.output_dir)
    if not is_adapter(name):
        raise ValueError(f"{name} holds no adapter_config.json: it is no adapter, so there is nothing to merge.")
    if output.exists():
        raise ValueError(f"`output_dir` {output} exists already. Give a new folder.")
    base, revision = adapter_base(name, args.base_model_name_or_path)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_source(name, base))
    if isinstance(read_model_config(name, base=base), CLoudConfig):
        model = load_merged(name, base, dtype=args.dtype)
    else:
        model = AutoModelForCausalLM.from_pretrained(base, revision=revision, dtype=args.dtype)
        model = PeftModel.from_pretrained(model, name).merge_and_unload()
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    print(f"{name} merged into {base}: {output}")


if __name__ == "__main__":
    main(*TrlParser(ARGUMENTS).parse_args_and_config())
