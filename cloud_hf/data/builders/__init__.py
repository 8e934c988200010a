"""Data builders, one module each."""

# Commands of `cloud-hf`: name, module and summary. To add a builder, write a module in this folder with `ARGUMENTS`, a tuple
# of argument dataclasses, and `main`, which takes an instance of each, and list it here.
BUILDERS = {
    "build-prompts": ("cloud_hf.data.builders.prompts", "Collect prompts, without duplicates and evaluation prompts."),
    "build-preferences": ("cloud_hf.data.builders.preferences", "Sample responses to prompts and let a judge compare them."),
    "build-oracle-critiques": ("cloud_hf.data.builders.oracle", "Let a strong model criticise both responses of pairs."),
    "self-critiques": ("cloud_hf.data.builders.self_critiques", "Stage 2: rewrite all critiques with the model of stage 1."),
    "self-critiques-with-ray": ("cloud_hf.data.builders.ray", "Stage 2 with vLLM engines on a Ray cluster."),
    "build-published-data": ("cloud_hf.data.builders.published", "Add the prompts to the authors' published data."),
    "merge-shards": ("cloud_hf.data.shards", "Merge the outputs of a builder's shards."),
}  # fmt: skip
