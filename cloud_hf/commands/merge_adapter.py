"""Merge a LoRA adapter into its base model, so that it loads without PEFT."""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import ModelCard
from peft import PeftModel
from transformers import AutoTokenizer

from ..argument_help import check_data_type, documented
from ..cards import CRITIC, inherit, kind_of, model_card, read_metadata, shown_name
from ..configuration_cloud import CLoudConfig, check_name
from ..loading import adapter_base, is_adapter, load_merged, read_model_config, tokenizer_source
from ..markdown import in_code
from ..modeling_cloud import load_language_model


@documented
@dataclass
class MergeArguments:
    """
    The adapter, its base and the output folder.

    Parameters:
        model_name_or_path (`str`):
            Hub id or folder of the adapter.
        output_dir (`str`):
            Folder for the merged model; must not exist.
        base_model_name_or_path (`str`, *optional*):
            Location of the base model, if it has moved since training. Its weights are compared with the hash recorded in the adapter.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Data type of the merged weights; `auto` keeps the data type of the base. The reward head stays in float32.
    """

    model_name_or_path: str
    output_dir: str
    base_model_name_or_path: str | None = None
    dtype: str = "auto"

    def __post_init__(self):
        check_data_type(self.dtype)


ARGUMENTS = (MergeArguments,)


def main(args: MergeArguments):
    name, output = args.model_name_or_path, Path(args.output_dir)
    check_name(name)
    if not is_adapter(name):
        raise ValueError(f"{name} is not an adapter (it has no adapter_config.json), so there is nothing to merge.")
    if output.exists():
        raise ValueError(f"`output_dir` {output} already exists; give a new folder.")
    base, revision = adapter_base(name, args.base_model_name_or_path)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_source(name, base))
    if isinstance(read_model_config(name, base=base), CLoudConfig):
        model = load_merged(name, base, dtype=args.dtype)
        kind = kind_of(model.config.critique)
        following = f"evaluate --models {output} --dataset_name PAIRS --output_dir evaluation"
    else:
        model = load_language_model(base, revision=revision, dtype=args.dtype)
        model = PeftModel.from_pretrained(model, name).merge_and_unload()
        kind = CRITIC
        following = f"self-critiques --model_name_or_path {output} --dataset_name PAIRS --output_dir self-critiques"
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    about = f"The LoRA adapter {in_code(shown_name(name) or '')} was merged into {in_code(shown_name(base) or '')}."
    metadata = inherit(base) | read_metadata(name, ModelCard)
    model_card(output.name, kind, about, metadata).save(output / "README.md")
    print(f"Wrote {name}, merged into {base}, to {output}. Next: cloud-hf {following}")
