"""
Add prompts to the authors' published training data: oracle critiques (--mode oracle), or critiques by their stage 1
models (--mode self-gen --model_size 8b or 70b). The result has the splits train and test.

The data is published without its prompts, which are in UltraFeedback and UltraInteract_pair; the licences of all three apply to the
result. --dataset_name, --feedback_name and --interact_name take Hub ids, or files or folders with copies.

python examples/build_official_ultra_llama.py --mode oracle --output_dir data/ultra-oracle
python examples/build_official_ultra_llama.py --mode self-gen --model_size 8b --output_dir data/ultra-self-gen-8b
"""

from cloud_hf.cli import run


if __name__ == "__main__":
    run("cloud_hf.data.builders.published")
