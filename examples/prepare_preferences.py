"""
Turn a public preference set into pairs that all scripts read: rated or ranked responses, votes, and files of other tools.

Reads whatever `datasets.load_dataset` reads. The layout is recognised by its columns; docs/data.md lists all layouts. Writes a
`save_to_disk` folder (columns id, prompt, chosen, rejected, with ratings also chosen_rating and rejected_rating, and the source's other
columns) with a card, build.json (settings, counts) and rejects.jsonl (ties, equal responses and everything else that is left out).

python examples/prepare_preferences.py --dataset_name nvidia/HelpSteer2 --output_dir helpsteer2-pairs --margins True

All pairs of the four responses, from files in a folder:

python examples/prepare_preferences.py --layout ultrafeedback --dataset_name "ultrafeedback/*.jsonl" --pairs all --output_dir pairs
"""

from cloud_hf.cli import run


if __name__ == "__main__":
    run("cloud_hf.commands.prepare")
