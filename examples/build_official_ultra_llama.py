"""
Add the prompts to the training data that the authors published: either oracle critiques (--mode oracle), or critiques written by their
stage 1 models (--mode self-gen --model_size 8b or 70b). The result has the splits train and test.

The data was published without its prompts, which come from UltraFeedback and UltraInteract_pair; the licences of all three datasets
apply to the result. --dataset_name, --feedback_name and --interact_name accept a Hub id, or a file or folder with a local copy.

python examples/build_official_ultra_llama.py --mode oracle --output_dir data/ultra-oracle
python examples/build_official_ultra_llama.py --mode self-gen --model_size 8b --output_dir data/ultra-self-gen-8b
"""

from cloud_hf.cli import run


if __name__ == "__main__":
    run("cloud_hf.data.builders.published")
