"""
Convert a reward model between layouts.

cloud-hf convert ankner/Llama3-8B-CLoud-RM llama3-8b-cloud
cloud-hf convert classic-rm classic-classifier --to sequence-classification

Without `--to`, a checkpoint in the authors' published layout becomes a native folder, which contains the language model's architecture
and loads with `AutoModel.from_pretrained`. A native folder that was converted from the published layout is converted back. At most one
safetensors shard is in memory at a time. `--dry_run` checks everything (for a Hub id, without downloading the weights)
and prints what would be written.

`--to sequence-classification` converts a classic model with a linear head to its architecture's own
`*ForSequenceClassification`, which gives the same rewards in transformers and vLLM; `--to cloud` does the reverse. Both load the
complete model into memory.
"""

import argparse
from pathlib import Path

from ..cli import ArgumentParser


def main(arguments: list[str] | None = None):
    """Run the conversion that the command line requests."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="Hub id or folder of the checkpoint")
    parser.add_argument("destination", help="new folder")
    parser.add_argument(
        "--to",
        choices=("sequence-classification", "cloud"),
        help="convert a classic model to a transformers sequence classifier, or such a classifier to a classic model",
    )
    parser.add_argument(
        "--base_model_name_or_path", help="Hub id or folder of the language model whose architecture to use"
    )
    parser.add_argument("--text_config", help="file or folder with the config of the language model")
    parser.add_argument("--tokenizer", help="Hub id or folder of the tokenizer, if the checkpoint has none")
    parser.add_argument("--revision", help="branch, tag or commit of the checkpoint on the Hub")
    parser.add_argument("--from_pickle", action="store_true", help="load pickled weights (only tensors, no code)")
    parser.add_argument("--dry_run", action="store_true", help="check everything and print what would be written")
    args = vars(parser.parse_args(arguments))
    source, destination = args.pop("source"), args.pop("destination")
    to, dry_run = args.pop("to"), args.pop("dry_run")
    if to is None:
        _convert_layout(source, destination, dry_run, args)
    elif given := [name for name, value in args.items() if value]:
        raise ValueError(
            f"`{given[0]}` applies only to the published layout, so it cannot be combined with `--to {to}`."
        )
    else:
        _convert_classifier(source, destination, to, dry_run)
    if dry_run:
        print(f"Nothing was written. Without --dry_run, the result goes to {destination}.")


def _convert_layout(source: str, destination: str, dry_run: bool, options: dict):
    # Imported here, because this imports torch, which takes seconds and is not needed for `--help` or to report errors
    from ..convert import check_empty, check_room, plan, write

    check_empty(Path(destination))  # before anything is downloaded
    conversion = plan(source, download=not dry_run, **options)
    print(conversion)
    if dry_run:
        check_room(Path(destination), conversion.num_bytes)
    else:
        write(conversion, destination)
        print(f"Wrote the {conversion.to} layout to {destination}. Next: cloud-hf serve {destination}")


def _convert_classifier(source: str, destination: str, to: str, dry_run: bool):
    from ..classifier_conversion import check_import, plan_export, write_export, write_import
    from ..convert import check_empty

    check_empty(Path(destination))
    if to == "cloud":
        tokenizer = check_import(source)
        if not dry_run:
            write_import(source, tokenizer, destination)
            print(f"Wrote a classic model to {destination}. Next: cloud-hf serve {destination}")
    else:
        export = plan_export(source)
        print(export)
        if not dry_run:
            write_export(export, destination)
            print(f"Wrote a sequence classifier to {destination}. Next: vllm serve {destination} --runner pooling")
