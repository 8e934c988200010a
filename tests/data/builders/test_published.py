import random

import pytest
from datasets import Dataset
from shared_data import read_rows, shared_data

from cloud_hf.data.builders.published import PromptSources, check_match, check_number, match, published_name
from cloud_hf.data.duplicates import words


def test_names_of_the_published_data():
    assert published_name("oracle", None) == "ankner/Llama3-8b-ultra-oracle"
    assert published_name("self-gen", "8b") == "ankner/Llama3-8b-ultra-self-gen-8b"
    assert published_name("self-gen", "70b") == "ankner/Llama3-8b-ultra-self-gen-70b"


@pytest.mark.parametrize(
    ("rows", "expected", "fits"),
    [(116_500, "117k", True), (117_499, "117k", True), (116_400, "117k", False), (117_600, "117k", False),
     (6_130, "6.13k", True), (6_134, "6.13k", True), (6_120, "6.13k", False), (63_967, "64k", True), (61_135, "64k", False)],
)  # fmt: skip
def test_numbers_are_compared_to_the_digits_that_are_known(rows, expected, fits):
    if fits:
        check_number(rows, expected, "The source")
    else:
        with pytest.raises(ValueError, match=f"The source has {rows} rows instead of {expected}"):
            check_number(rows, expected, "The source")


USER = {"from": "user", "value": "Task?"}


def sources(instructions, trajectories):
    return PromptSources(
        Dataset.from_dict({"instruction": instructions}), Dataset.from_dict({"trajectory": trajectories})
    )


def test_rows_without_a_prompt_are_named_by_source_and_number():
    found = sources(["Which cup?", None], [[USER], [], [{"from": "user", "value": None}]])
    assert found.prompts(["interact-0", "feedback-0"]) == ["Task?", "Which cup?"]
    with pytest.raises(
        ValueError,
        match=r"3 of 4 source rows contain no prompt .* such as rows 1 of `feedback` \(id 'feedback-1'\), 2 of `interact`",
    ):
        found.prompts(["feedback-1", "interact-2", "interact-0", "interact-1"])  # fmt: skip


def test_hashes_are_of_order_and_contents():
    first = sources(["a", "b"], [[USER], []]).hashes()
    assert sources(["a", "b"], [[USER], []]).hashes() == first
    assert sources(["b", "a"], [[USER], []]).hashes()["feedback_hash"] != first["feedback_hash"]
    assert sources(["a", "b"], [[], [USER]]).hashes()["interact_hash"] != first["interact_hash"]


def test_texts_that_do_not_tell_rows_apart_are_not_compared():
    same = [{"why"}] * 4
    assert match([{"a"}, {"b"}, {"c"}, {"d"}], same) == (None, 0)
    # A response that repeats every prompt, and a prompt that every response repeats, say nothing
    assert match([{"a", "b", "c", "d"}] * 4, [{"a"}, {"b"}, {"c"}, {"d"}]) == (None, 0)
    assert match([{"a"}, {"b"}], [{"b"}, {"a"}]) == (None, 0)


def splits_of(rows, order):
    ids = [f"{('feedback', 'interact')[place % 2]}-{place}" for place in range(len(rows))]
    columns = {name: [row[name] for row in rows] for name in ("chosen", "rejected")}
    return {"train": Dataset.from_dict({"id": ids, "prompt": [rows[place]["prompt"] for place in order], **columns})}


def test_real_rows_fit_their_own_prompts_and_no_others():
    rows = read_rows(shared_data() / "train/cloud_pairs_arenabench_gpt4.jsonl.gz")
    rows = list({row["prompt"]: row for row in rows}.values())
    order = list(range(len(rows)))
    assert check_match(splits_of(rows, order)) >= 0.95 * len(rows)
    for other in (order[::-1], [*order[20:], *order[:20]], random.Random(0).sample(order, len(order))):
        with pytest.raises(ValueError, match="do not fit the prompts of rows"):
            check_match(splits_of(rows, other))


def test_the_least_fit_lies_between_own_and_other_prompts():
    """Short chats, whose responses repeat their prompts least."""
    rows = read_rows(shared_data() / "eval/anthropic_harmless.jsonl.gz")[:100]
    responses = [set(words(f"{row['chosen']} {row['rejected']}")) for row in rows]
    prompts = [set(words(" ".join(turn["content"] for turn in row["prompt"]))) for row in rows]
    right, _ = match(responses, prompts)
    wrong, _ = match(responses, prompts[1:] + prompts[:1])
    assert right is not None and wrong is not None and right > 0.8 and abs(wrong) < 0.25
