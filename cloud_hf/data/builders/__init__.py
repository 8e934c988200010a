"""Data builders. Each module has `ARGUMENTS`, a tuple of argument dataclasses, and `main`, which takes an instance of each."""

# To add a builder, write its module in this folder and list it here; it becomes a command of `cloud-hf`
BUILDERS = {
    "build-prompts": ("cloud_hf.data.builders.prompts", "Collect prompts from datasets, without duplicates."),
    "build-preferences": (
        "cloud_hf.data.builders.preferences",
        "Sample responses and pair them using a judge's verdicts.",
    ),
    "oracle-critiques": ("cloud_hf.data.builders.oracle", "Let a strong model write the critiques of stage 1."),
    "self-critiques": (
        "cloud_hf.data.builders.self_critiques",
        "Stage 2: rewrite the critiques with the stage 1 model.",
    ),
}
