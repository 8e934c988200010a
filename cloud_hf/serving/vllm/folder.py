"""Folders that vLLM can load: the model's own, or a merged copy of a LoRA adapter and its base."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from ...configuration_cloud import CLoudConfig
from ...loading import check_reward_model, is_adapter, load_reward_model, read_model_config
from ...published import is_published


@contextmanager
def servable_model(name: str) -> Iterator[str]:
    """
    Yield a name under which vLLM can load a reward model. An adapter is merged into a temporary folder: its reward head is
    fully trained, which vLLM's LoRA cannot apply.

    Args:
        name (`str`):
            Hub id or folder of a native model, or of a LoRA adapter.

    Raises:
        `ValueError`: If it is not a CLoud model, or is a published checkpoint that was not converted.
    """
    if not is_adapter(name) and is_published(CLoudConfig.get_config_dict(name)[0]):
        raise ValueError(
            f"{name} has the authors' layout, which vLLM cannot load. Convert it once: "
            f"`python -m cloud_hf.convert {name} DST`, and serve DST."
        )
    check_reward_model(name, read_model_config(name))
    if not is_adapter(name):
        yield name
        return
    with tempfile.TemporaryDirectory(prefix="cloud-merged-") as folder:
        model, tokenizer = load_reward_model(name, device_map="cpu")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        yield folder
