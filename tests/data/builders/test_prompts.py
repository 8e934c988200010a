from datasets import Dataset

from cloud_hf.data.builders.prompt_sources import Prompt, PromptReject, PromptSource, prompt_id
from cloud_hf.data.builders.prompts import count_outcomes, draw


def prompts(count):
    return [Prompt(prompt_id("s", f"question {i}"), f"question {i}", "s", i) for i in range(count)]


def test_a_draw_keeps_the_order_and_does_not_depend_on_it():
    pool = prompts(200)
    drawn = draw(pool, 50, seed=1)
    assert len(drawn) == 50 and drawn == sorted(drawn, key=lambda prompt: prompt.row)
    assert {prompt.id for prompt in draw(pool[::-1], 50, seed=1)} == {prompt.id for prompt in drawn}
    assert set(draw(pool, 30, seed=1)) < set(drawn)
    assert draw(pool, 50, seed=2) != drawn
    assert draw(pool, 300, seed=1) == pool
    # Some of the first half and some of the second
    assert 10 < sum(prompt.row < 100 for prompt in drawn) < 40


def test_counts_add_up():
    sources = [
        PromptSource(name, Dataset.from_dict({"prompt": ["a"] * rows}), "prompt")
        for name, rows in (("s", 5), ("t", 1))
    ]
    kept = prompts(2)
    empty = [PromptReject(row, None, "failed", "empty", "s") for row in (2, 4)]
    rejects = [*empty, PromptReject.of(prompts(4)[3], "not drawn"), PromptReject(0, None, "failed", "empty", "t")]
    assert count_outcomes(sources, kept, rejects) == {
        "s": {"read": 5, "empty": 2, "not drawn": 1, "kept": 2},
        "t": {"read": 1, "empty": 1, "not drawn": 0, "kept": 0},
    }
