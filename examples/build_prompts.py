"""
Collect prompts from datasets, removing duplicates and prompts that overlap with evaluation sets.

Writes a `save_to_disk` folder (columns id, prompt, source) with a dataset card, build.json (settings, counts) and rejects.jsonl (one
line for every rejected row, with the reason). An id depends only on the source's name and the prompt's text. Needs
`pip install -e '.[data]'`.

The paper's prompts: all prompts from UltraFeedback, and the same number of single-turn prompts from UltraInteract:

python examples/build_prompts.py --sources ultrafeedback ultrainteract --output_dir prompts \
    --decontaminate_against allenai/reward-bench --decontaminate_split filtered

Prompts from other datasets:

python examples/build_prompts.py --dataset_name a.jsonl some/dataset --prompt_column question --output_dir prompts \
    --decontaminate_against heldout.jsonl
"""

from cloud_hf.cli import run


if __name__ == "__main__":
    run("cloud_hf.data.builders.prompts")
