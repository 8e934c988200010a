"""A scorer without a model."""

from cloud_hf import Score


class TableScorer:
    """A scorer that knows each response's reward."""

    def __init__(self, rewards):
        self.rewards = rewards
        self.calls = []

    def score(self, prompts, responses, **options):
        self.calls.append((prompts, responses, options))
        return [
            Score(
                self.rewards[text], "c", (self.rewards[text],), ("c",), 0.0, ("length" if text == "cut" else "stop",)
            )
            for text in responses
        ]
