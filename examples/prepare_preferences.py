"""
Convert a public preference set (rated or ranked responses, votes, or files from other tools) to pairs that all scripts can read.

Reads everything that `datasets.load_dataset` reads. The layout is recognised by its columns; docs/data.md lists all layouts. Writes a
`save_to_disk` folder with a dataset card, build.json (settings, counts) and rejects.jsonl (ties, identical responses and everything else
that is left out). The columns are id, prompt, chosen, rejected and the source's other columns; rated sets also get chosen_rating and
rejected_rating, and --margins True adds margin.

python examples/prepare_preferences.py --dataset_name nvidia/HelpSteer2 --output_dir helpsteer2-pairs --margins True

All pairs of the four responses to each prompt, from files in a folder:

python examples/prepare_preferences.py --layout ultrafeedback --dataset_name "ultrafeedback/*.jsonl" --pairs all --output_dir pairs
"""

from cloud_hf.cli import run


if __name__ == "__main__":
    run("cloud_hf.commands.prepare")
