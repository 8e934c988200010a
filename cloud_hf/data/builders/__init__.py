"""Data builders. Each module defines `ARGUMENTS`, a tuple of argument dataclasses, and `main`, which accepts an instance of each."""

# To add a builder, write a module in this folder and list it here. It then becomes a `cloud-hf` command
BUILDERS = {
    "build-prompts": ("cloud_hf.data.builders.prompts", "Collect prompts from datasets, without duplicates."),
    "build-preferences": (
        "cloud_hf.data.builders.preferences",
        "Sample responses and pair them using a judge's verdicts.",
    ),
    "oracle-critiques": ("cloud_hf.data.builders.oracle", "Have a strong model write the critiques for stage 1."),
    "self-critiques": (
        "cloud_hf.data.builders.self_critiques",
        "Stage 2: rewrite the critiques with the stage 1 model.",
    ),
}
