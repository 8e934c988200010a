"""A language model of stage 1 that ends its critiques at different lengths, and pairs for it."""

import json

import torch
from models_for_tests import save_language_model
from tokenizers_for_tests import make_tokenizer
from transformers import AutoModelForCausalLM

from cloud_hf import CLoudForRewardModeling


def save_critic(folder, seed=3, loudness=2.0, **kwargs):
    """The model in a folder; `loudness` of its end token says how soon critiques end."""
    save_language_model(folder, seed=seed, **kwargs)
    model = AutoModelForCausalLM.from_pretrained(folder)
    end = CLoudForRewardModeling.config_from_base(folder).critique_end_token_id
    with torch.no_grad():
        model.get_output_embeddings().weight[end] *= loudness
    model.save_pretrained(folder)
    return folder


def make_pairs(count):
    """Rows of different lengths, some with turns."""
    rows = []
    for i in range(count):
        question = f"What is {i} + 30?" + " Say why." * (i % 5)
        turns = [{"role": "user", "content": "Hello <|eot_id|>"}, {"role": "assistant", "content": "Hi."}] * (i % 3)
        rows.append(
            {
                "id": f"p{i}",
                "topic": i % 2,
                "prompt": [*turns, {"role": "user", "content": question}],
                "chosen": f"It is {i + 30}." + " Sure!" * (i % 4),
                "rejected": f"It is {i}.",
                "chosen_feedback": "old",
            }
        )
    return rows


def save_pairs(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def score_rows(folder, rows, **options):
    """Scores of both responses of all rows, in one call, as `(chosen, rejected)`."""
    torch.manual_seed(0)
    model = CLoudForRewardModeling.from_base(folder).eval()
    prompts = [row["prompt"] for row in rows for _ in range(2)]
    responses = [row[side] for row in rows for side in ("chosen", "rejected")]
    scores = model.score(prompts, responses, make_tokenizer("llama3"), **options)
    return list(zip(scores[::2], scores[1::2], strict=True))
