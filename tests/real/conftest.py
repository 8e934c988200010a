"""A real pretrained model, real rows, and an untrained reward model of both on disk."""

import json
import shutil

import pytest
import real_model
from shared_data import read_rows, shared_data


@pytest.fixture(scope="session")
def smollm2(pytestconfig):
    """The folder of SmolLM2-135M-Instruct."""
    return real_model.smollm2(pytestconfig.cache.mkdir("smollm2"))


@pytest.fixture(scope="session")
def reward_model(smollm2, tmp_path_factory):
    """The folder of a CLoud model that is not trained, whose rewards differ."""
    from models_for_tests import make_model
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("real") / "reward-model"
    make_model(smollm2).save_pretrained(folder)
    AutoTokenizer.from_pretrained(smollm2).save_pretrained(folder)
    yield folder
    shutil.rmtree(folder)


def longest_side(row):
    return max(len(row["prompt"] + row[side] + row[f"{side}_feedback"]) for side in ("chosen", "rejected"))


@pytest.fixture(scope="session")
def critiqued_pairs(tmp_path_factory):
    """A file of the shortest real pairs with critiques."""
    rows = read_rows(shared_data() / "train/cloud_pairs_arenabench_gpt4.jsonl.gz")
    rows = sorted(rows, key=longest_side)[:2]
    path = tmp_path_factory.mktemp("rows") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf8")
    return path


@pytest.fixture(scope="session")
def evaluation_file():
    """Real pairs of LLMBar, short ones first."""
    return shared_data() / "eval/llmbar-natural.jsonl"
