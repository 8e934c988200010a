"""
Convert a reward model between the authors' published layout and the native one, shard by shard:

cloud-hf convert ankner/Llama3-8B-CLoud-RM llama3-8b-cloud

The native folder holds its language model's architecture and loads with `AutoModel.from_pretrained`. `--dry_run` checks
everything (of a Hub id without downloading the weights) and prints what would be written. A native folder that was converted
before is converted back to the published layout.

At most one shard of safetensors is in memory at a time.
"""

import argparse
from pathlib import Path

from ..cli import ArgumentParser


def main(arguments: list[str] | None = None):
    """Run the conversion that the command line describes."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="Hub id or folder of the checkpoint")
    parser.add_argument("destination", help="new folder")
    parser.add_argument("--base_model_name_or_path", help="language model to read the architecture from")
    parser.add_argument("--text_config", help="file or folder with the config of that language model")
    parser.add_argument("--tokenizer", help="Hub id or folder of the tokenizer, if the checkpoint has none")
    parser.add_argument("--revision", help="branch, tag or commit of the checkpoint on the Hub")
    parser.add_argument("--from_pickle", action="store_true", help="read pickled weights (tensors only)")
    parser.add_argument("--dry_run", action="store_true", help="check, and print what would be written")
    args = vars(parser.parse_args(arguments))
    source, destination, dry_run = args.pop("source"), args.pop("destination"), args.pop("dry_run")
    # Imports torch, which takes seconds, and is not needed for `--help` and mistakes
    from ..convert import check_empty, check_room, plan, write

    check_empty(Path(destination))  # before a download
    conversion = plan(source, download=not dry_run, **args)
    print(conversion)
    if dry_run:
        check_room(Path(destination), conversion.num_bytes)
        print(f"Nothing was written. Without --dry_run, the result goes to {destination}.")
    else:
        write(conversion, destination)
        print(f"Wrote the {conversion.to} layout to {destination}. Next: cloud-hf serve {destination}")
