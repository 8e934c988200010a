r"""
Join the outputs of a builder that ran with --shard 0/n, 1/n, … on several machines: the rows are those that one run would
have written, in the same order.

python examples/merge_shards.py --shards out-0 out-1 out-2 out-3 --output_dir merged

A Slurm array with one shard a task; a task that was killed goes on when it is submitted again:

    #!/bin/bash
    #SBATCH --array=0-15 --gpus=1 --time=24:00:00 --requeue
    python examples/build_self_critiques.py --model_name_or_path critic-sft --dataset_name pairs.jsonl --backend vllm \
        --shard $SLURM_ARRAY_TASK_ID/16 --output_dir out-$SLURM_ARRAY_TASK_ID

    sbatch --dependency=afterok:JOB --wrap "python examples/merge_shards.py --shards out-* --output_dir merged"
"""

import asyncio
import os
from dataclasses import dataclass, field

from trl import TrlParser

from cloud_hf.data.journal import JournalError
from cloud_hf.data.shards import REJECTS, merge, read_shards


@dataclass(kw_only=True)
class MergeArguments:
    """
    What is joined.

    Parameters:
        shards (`list[str]`):
            Output folders of all shards, in any order.
        output_dir (`str`):
            Folder for the joined dataset, its card, `rejects.jsonl` and `build.json`.
    """

    shards: list[str] = field(metadata={"help": "Output folders of all shards."})
    output_dir: str = field(metadata={"help": "Folder for the joined dataset."})

    def __post_init__(self):
        if os.path.realpath(self.output_dir) in map(os.path.realpath, self.shards):
            raise ValueError(f"`output_dir` is one of the shards ({self.output_dir}); name another folder.")


ARGUMENTS = (MergeArguments,)


def main(args: MergeArguments):
    shards = read_shards(args.shards)
    try:
        counts = asyncio.run(merge(shards, args.output_dir))
    except (JournalError, OSError) as error:
        raise SystemExit(str(error)) from None
    print(
        f"{counts['rows']} rows of {len(shards)} shards in {args.output_dir} ({counts['dropped']} dropped, "
        f"{counts['failed']} failed)."
    )
    if counts["failed"]:
        failed = [str(shard.path) for shard in shards if shard.counts["failed"]]
        print(
            f"{counts['failed']} row(s) failed in {', '.join(failed)}: see {REJECTS}. Run these shards again to try them again, "
            "and merge again."
        )
        raise SystemExit(3)


if __name__ == "__main__":
    main(*TrlParser(ARGUMENTS).parse_args_and_config())
