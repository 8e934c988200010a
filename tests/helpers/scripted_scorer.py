"""A backend without a model: rewards and critiques are hashes of the texts, so that reports can be compared with recorded ones."""

import hashlib
from contextlib import contextmanager

from tokenizers_for_tests import make_tokenizer

from cloud_hf.critique_format import CritiqueFormat
from cloud_hf.generation import Sample
from cloud_hf.loading import read_model_config
from cloud_hf.scoring import Score, report_scores


CONTEXT = 400
_TOKENIZER = make_tokenizer("llama3")


class ScriptedScorer:
    """Scores with one digit, so that ties occur. Right answers of the tests' files hold a "+", and are worth a bit more."""

    def __init__(self, name: str, critique: bool):
        self.name, self.critique = name, critique

    def score(
        self, prompts, responses, *, num_critiques=1, temperature=0.0, max_new_tokens=0, seed=None, on_score=None
    ):
        scores = []
        for prompt, response in zip(prompts, responses, strict=True):
            draws = range(num_critiques) if temperature else [None] * num_critiques
            samples = [
                self._sample(f"{prompt} {response}", f"{temperature:g} {seed} {draw}" if temperature else "")
                for draw in draws
            ]
            scores.append(Score.of(samples))
        return report_scores(scores, on_score)

    def _sample(self, chat: str, draw: str) -> Sample:
        text = _number(f"{self.name} {chat}")
        noise = _number(f"{self.name} {chat} {draw}")
        reward = round(2 * (text - 0.5) + 0.8 * (noise - 0.5) + 0.7 * ("+" in chat), 1)
        if not self.critique:
            return Sample(reward)
        words = ["It is right.", "The sum is wrong, and the steps are missing.", "Short, but clear enough."]
        critique = " ".join(words[: 1 + int(3 * noise)])
        ids = tuple(_TOKENIZER(critique, add_special_tokens=False)["input_ids"])
        return Sample(reward, critique, ids, "length" if noise > 0.95 else "stop")


def _number(text: str) -> float:
    """From 0 to 1."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) / 2**32


@contextmanager
def open_scripted_backend(name, args, show_progress=True):
    """Instead of [`~cloud_hf.serving.backends.open_backend`]; `name` is a folder with a config."""
    critique = read_model_config(name).critique
    critique_format = CritiqueFormat(_TOKENIZER, critique=critique)
    yield ScriptedScorer(name, critique), critique_format, CONTEXT
