import random
from collections import Counter

import pytest
from transformers import LlamaForCausalLM

from cloud_hf import CritiqueFormat
from cloud_hf.data.shell_game import (
    CUPS,
    SPLITS,
    ShellGame,
    best_of_n_rows,
    build_model_config,
    build_tokenizer,
    direct_answer_rows,
    preference_rows,
    random_game,
    response_text,
)


def play(start, swaps):
    """The game with an actual row of cups, where `positions` tracks the ball alone."""
    table = {cup: cup == start for cup in CUPS}
    for a, b in swaps:
        table[a], table[b] = table[b], table[a]
    return next(cup for cup, ball in table.items() if ball)


def test_answers_and_critiques_are_right():
    rng = random.Random(0)
    for k in (1, 2, 3, 4) * 50:
        game = random_game(rng, k)
        assert game.answer == play(game.start, game.swaps)
        assert ShellGame.from_prompt(game.prompt) == game and game.difficulty == k
        for cup in CUPS:
            verdict = "right" if cup == game.answer else "wrong"
            assert game.critique(response_text(cup)).endswith(f"Response {cup} {verdict}.")
        for step, cup in enumerate(game.positions, start=1):
            assert f" gives {cup}." in game.critique("")
            assert cup == play(game.start, game.swaps[:step])


def test_rows_are_right_and_repeatable():
    assert preference_rows(20, seed=3) == preference_rows(20, seed=3) != preference_rows(20, seed=4)
    for row in preference_rows(100):
        game = ShellGame.from_prompt(row["prompt"])
        assert row["chosen"] == response_text(game.answer) != row["rejected"]
        assert row["chosen_feedback"].endswith("right.") and row["rejected_feedback"].endswith("wrong.")
    for row in best_of_n_rows(50):
        assert sum(row["correct"]) == 1
        assert row["responses"][row["correct"].index(True)] == response_text(
            ShellGame.from_prompt(row["prompt"]).answer
        )
    for row in direct_answer_rows(50):
        assert row["response"] == response_text(ShellGame.from_prompt(row["prompt"]).answer)


def test_problems_of_every_difficulty_are_held_out():
    prompts = {split: {row["prompt"] for row in preference_rows(4000, split)} for split in SPLITS}
    prompts["train"] |= {row["prompt"] for row in direct_answer_rows(4000)}
    prompts["test"] |= {row["prompt"] for row in best_of_n_rows(400)}
    assert not prompts["train"] & prompts["test"]
    assert not prompts["validation"] & (prompts["train"] | prompts["test"])
    for split, problems in prompts.items():
        assert {ShellGame.from_prompt(prompt).difficulty for prompt in problems} == {1, 2, 3, 4}, split
    with pytest.raises(ValueError, match="Unknown split"):
        ShellGame("A", (("A", "B"),)).belongs_to("dev")


def test_held_out_rows_are_distinct():
    pairs = preference_rows(500, "test")
    assert len(pairs) == len({(row["prompt"], row["rejected"]) for row in pairs}) == 500
    assert Counter(row["difficulty"] for row in pairs)[1] == 24  # 8 problems with 3 wrong cups each
    problems = best_of_n_rows(200)
    assert len({row["prompt"] for row in problems}) == len({row["id"] for row in problems}) == 200
    assert len(preference_rows(24, "test", [1])) == 24
    with pytest.raises(ValueError, match="The test split has 24 distinct rows with 1 swaps, but 25 were requested"):
        preference_rows(25, "test", [1])


def test_no_surface_cue_tells_chosen_from_rejected():
    """Answers and wrong cups are exchangeable: each cup is as often chosen as rejected, alone and given the start."""
    rows = preference_rows(6000, "test")
    for column in ("chosen", "rejected"):
        counts = Counter(row[column] for row in rows)
        assert all(abs(count / 6000 - 0.25) < 0.03 for count in counts.values()), (column, counts)


def test_tokenizer_spells_the_game_in_words_and_any_text_in_bytes():
    tokenizer = build_tokenizer()
    row = preference_rows(4)[3]
    for text in (row["prompt"], row["chosen_feedback"], CritiqueFormat(tokenizer).critique_prompt):
        pieces = tokenizer.tokenize(text)
        assert not any(len(piece.lstrip("Ġ")) > 1 and piece.lstrip("Ġ") not in text for piece in pieces)
        assert (
            len(pieces)
            <= len(text.replace(".", " .").replace(":", " :").replace("?", " ?").replace("'", " ' ").split()) + 6
        )
    for text in ["naïve 🙂 日本\n\n\tdef f(x):", "\x00\u200b", "<|im_end|>"]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
    again = build_tokenizer()
    assert again.get_vocab() == tokenizer.get_vocab()
    assert set(tokenizer.get_vocab().values()) == set(range(len(tokenizer)))


def test_model_and_format_fit_the_tokenizer(tmp_path):
    tokenizer = build_tokenizer()
    model = LlamaForCausalLM(build_model_config(tokenizer))
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)
    critique_format = CritiqueFormat(tokenizer)
    assert critique_format.end_token == "<|im_end|>"
    row = preference_rows(4)[3]
    encoded = critique_format.encode(row["prompt"], row["chosen"], row["chosen_feedback"])
    assert critique_format.decode(encoded.input_ids[encoded.prefix_length : -1]) == row["chosen_feedback"]
    assert len(encoded.input_ids) - encoded.prefix_length <= 100  # the recipes' max_new_tokens
