"""Golden outputs of the reference implementation, read from `../shared/parity`; tests that need them skip where it is absent."""

import json
from functools import cache
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from cloud_hf import CLoudForRewardModeling, CritiqueFormat


FOLDER = Path(__file__).parents[3] / "shared" / "parity"


def folder() -> Path:
    if not FOLDER.is_dir():
        pytest.skip("needs the golden outputs in ../shared/parity, which are not part of the product")
    return FOLDER


def read(path: str):
    return json.loads((folder() / path).read_text())


@cache
def load_model(kind: str) -> CLoudForRewardModeling:
    """`teacher` (CLoud) or `vanilla` (classic). The base they name is a path relative to the folder."""
    path = folder() / f"ckpt_{kind}"
    return CLoudForRewardModeling.from_pretrained(path, base_model_name_or_path=str(folder() / "base_model")).eval()


@cache
def load_tokenizer(kind: str = "teacher"):
    return AutoTokenizer.from_pretrained(folder() / f"ckpt_{kind}")


@cache
def load_format(kind: str) -> CritiqueFormat:
    return CritiqueFormat.from_config(load_model(kind).config, load_tokenizer(kind))


SIDES = ("chosen", "rejected")


def kind_of(name):
    """The critique SFT arm has the sequences of the CLoud arm."""
    return "vanilla" if name.startswith("vanilla") else "teacher"


def encode(sample, side, name, max_length):
    """One row as the reference trains on it; of several critiques it takes the first."""
    critique_format = load_format(kind_of(name))
    critique = sample[f"{side}_feedback"]
    critique = critique if isinstance(critique, str) else critique[0]
    prefix = critique_format.encode_prefix(sample["prompt"], sample[side])
    encoded = critique_format.complete_for_training(prefix, critique if critique_format.critique else None)
    return critique_format.truncate_end(encoded, max_length)
