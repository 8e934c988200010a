import random

import pytest
from shared_data import read_rows, real_texts, shared_data

from cloud_hf.data.duplicates import (
    NUM_PERMUTATIONS,
    EvaluationNGrams,
    bands_and_rows,
    find_exact_duplicates,
    find_near_duplicates,
    jaccard,
    ngrams,
    quantities,
    shingles,
    words,
    words_and_marks,
)


# -------------------------------------------------------------------------------------------------------------- words


def test_marks_that_end_a_word_do_not_count_and_others_do():
    assert words_and_marks("Why not?") == words_and_marks("why NOT")
    assert words_and_marks("3 + 4 = ?") != words_and_marks("3 - 4 = ?")
    assert words_and_marks("x.y 3.14") == ["x", ".", "y", "3", ".", "14"]
    assert words("3 + 4") == words("3 - 4") == ["3", "4"]


def test_scripts_without_spaces_have_words_too():
    assert words("球在哪里?") == ["球", "在", "哪", "里"]
    assert words("où est la balle") == ["où", "est", "la", "balle"]


def test_combining_marks_belong_to_their_word():
    assert words("हिन्दी में पाँच शब्द हैं") == ["हिन्दी", "में", "पाँच", "शब्द", "हैं"]
    assert words_and_marks("हिन्दी में") == ["हिन्दी", "में"]
    assert words("q\u0303a x\u0323") == ["q\u0303a", "x\u0323"]


def test_invisible_characters_do_not_hide_an_overlap():
    evaluation = EvaluationNGrams(13)
    sentence = " ".join(f"word{number}" for number in range(13))
    evaluation.add("eval", [sentence])
    for invisible in ("\u00ad", "\u200b", "\u200d", "\u2060", "\ufeff"):
        hidden = sentence.replace("word7", f"wo{invisible}rd7")
        assert evaluation.find(f"Please: {hidden}!") == {"eval": sentence}
        assert words_and_marks(hidden) == words_and_marks(sentence)


def test_ngrams_of_short_texts():
    assert ngrams(["a", "b", "c", "d"], 3) == ["a b c", "b c d"]
    assert ngrams(["a"], 3) == ["a"]
    assert ngrams([], 3) == []


# --------------------------------------------------------------------------------------------------------- duplicates


WORDS = [f"word{number}" for number in range(3000)]


def text_of(length, seed):
    return " ".join(random.Random(seed).choices(WORDS, k=length))


def kept(texts, threshold=0.8):
    duplicates = find_near_duplicates(texts, threshold)
    return [text for index, text in enumerate(texts) if index not in duplicates]


def pool(seed):
    """Texts of all lengths, each followed somewhere by versions of itself with more and more words exchanged."""
    noise = random.Random(seed)
    texts = []
    for number in range(40):
        words = text_of(noise.choice([1, 3, 8, 30, 120]), seed * 1000 + number).split()
        for changes in (0, 0, 1, 2, 4, 8):
            version = list(words)
            for _ in range(changes):
                version[noise.randrange(len(version))] = noise.choice(WORDS)
            texts.append(" ".join(version))
    noise.shuffle(texts)
    return texts


def test_the_first_of_equal_texts_stays():
    duplicates = find_exact_duplicates(["a", "b", "a", "c", "b", "a"])
    assert {index: duplicate.of for index, duplicate in duplicates.items()} == {2: 0, 4: 1, 5: 0}


@pytest.mark.parametrize("threshold", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_what_is_removed_is_similar_to_what_stays_before_it_and_nothing_is_removed_twice(seed, threshold):
    texts = pool(seed)
    duplicates = find_near_duplicates(texts, threshold)
    assert duplicates
    for index, duplicate in duplicates.items():
        assert duplicate.of < index and duplicate.of not in duplicates
        similarity = jaccard(shingles(texts[index]), shingles(texts[duplicate.of]))
        assert duplicate.similarity == similarity >= threshold
    assert find_near_duplicates(texts, threshold) == duplicates
    remaining = kept(texts, threshold)
    assert kept(remaining, threshold) == remaining
    assert remaining == [text for index, text in enumerate(texts) if index not in duplicates]


def test_nearly_all_clear_duplicates_are_found():
    """Of 200 texts of 100 words with one word exchanged (similarity 0.9), as many as the index promises."""
    texts = [text_of(100, seed) for seed in range(200)]
    changed = []
    for number, text in enumerate(texts):
        words = text.split()
        words[50] = f"other{number}"
        changed.append(" ".join(words))
    found = find_near_duplicates(texts + changed)
    assert all(duplicate.of == index - 200 for index, duplicate in found.items())
    assert len(found) >= 190


def test_an_index_finds_what_it_promises():
    for threshold in (0.3, 0.5, 0.7, 0.8, 0.9, 0.99, 1.0):
        bands, rows = bands_and_rows(threshold)
        assert bands >= 2 and bands * rows <= NUM_PERMUTATIONS
        assert 1 - (1 - threshold**rows) ** bands >= 0.75


def test_case_spaces_and_final_marks_do_not_make_another_prompt_but_signs_do():
    assert len(kept(["What is the capital of France?", "what is  the capital of FRANCE"])) == 1
    assert len(kept(["What is 3 + 4?", "What is 3 - 4?", "What is 3 + 5?"])) == 3
    assert len(kept(["...", "?!", "🙂", "😀"])) == 4


def test_numbers_and_signs_make_another_problem():
    problem = "Natalia sold {} to {} of her friends in April, and {} of that number in May. How many did she sell in {} months, if a - b = {}?"
    first = problem.format("48 clips", "1,000", "50%", "2", "x + 3")
    assert quantities(first) == quantities(first.replace("1,000", "1000"))
    assert len(kept([first, first.upper(), first.replace("Natalia", "Natalie")], 0.7)) == 1
    changes = [
        ("48", "49"),
        ("1,000", "1,001"),
        ("50%", "50"),
        ("2 months", "12 months"),
        ("+ 3", "- 3"),
        ("a - b", "a * b"),
    ]
    others = [first.replace(old, new) for old, new in changes]
    assert len(kept([first, *others], 0.7)) == 1 + len(others)


@pytest.mark.parametrize(("one", "other"), [("x²", "x³"), ("three", "seven"), ("€ 5", "£ 5"), ("20 °C", "20 °F")])
def test_exponents_number_words_and_units_decide(one, other):
    problem = "In the first chapter of the book that our class read, {} is said to be the right answer to the last of the problems there. "
    problem += "Explain in a few sentences, for a reader who has never seen such a problem before, whether that is indeed so, and why."
    assert find_near_duplicates([problem.format(one), problem.format(other)]) == {}
    assert find_near_duplicates([problem.format(one), problem.format(f"{one}  ").upper()]) != {}


def test_hyphens_of_words_and_numbers_of_names_are_not_quantities():
    assert quantities("A well-known gpt4 - or not - e-mail - see* /path/ **bold**") == ()
    assert quantities("3-4, x - y; (-5) 2*3 x^2 -7 3x - 2y") == (*"3-4--52*3^2-73-2",)


def test_real_problems_with_one_other_number_stay():
    noise, problems = (
        random.Random(0),
        [row["prompt"] for row in read_rows(shared_data() / "eval/gsm8k_solutions.jsonl")],
    )
    for problem in problems[:60]:
        numbers = [number for number in quantities(problem) if number.isdigit() and problem.count(number) == 1]
        for number in numbers[:1]:
            other = problem.replace(number, str(int(number) + noise.randint(1, 9)))
            assert len(kept([problem, other])) == 2


def test_one_wording_with_different_questions_is_no_duplicate():
    wording = text_of(40, 0)
    assert len(kept([f"{wording} {text_of(12, seed)}" for seed in range(1, 60)])) == 59


def test_texts_of_different_groups_are_no_duplicates():
    text = text_of(50, 0)
    assert find_near_duplicates([text] * 3, groups=["a", "b", "a"]).keys() == {2}


def test_a_threshold_that_is_no_similarity_is_refused():
    for threshold in (0, -1, 1.2):
        with pytest.raises(ValueError, match="a Jaccard similarity"):
            find_near_duplicates(["a"], threshold)


def test_real_prompts():
    rows = read_rows(shared_data() / "train/cloud_pairs_arenabench_gpt4.jsonl.gz")
    texts = list(dict.fromkeys(row["prompt"] for row in rows))
    remaining = kept(texts)
    assert kept(remaining) == remaining
    assert kept(texts + [text.upper() for text in texts]) == remaining


# -------------------------------------------------------------------------------------- overlaps with evaluation sets


def word_range(count, start=0):
    return [f"w{number}" for number in range(start, start + count)]


@pytest.mark.parametrize("n", [2, 8, 13])
@pytest.mark.parametrize("seed", range(20))
def test_n_words_in_a_row_are_found_and_one_fewer_is_not(n, seed):
    noise = random.Random(seed)
    evaluation = EvaluationNGrams(n)
    question = word_range(40)
    evaluation.add("set", [" ".join(question)])
    start, place = noise.randrange(40 - n), noise.randrange(30)
    for shared in (n, n - 1):
        prompt = word_range(30, start=100)
        prompt[place:place] = question[start : start + shared]
        found = evaluation.find(" ".join(prompt))
        assert found == ({"set": " ".join(question[start : start + n])} if shared == n else {})


def test_case_marks_and_spaces_do_not_hide_an_overlap():
    evaluation = EvaluationNGrams(4)
    evaluation.add("set", ["The ball starts under cup D."])
    assert evaluation.find("“THE  ball—starts,\nunder” a") == {"set": "the ball starts under"}


def test_short_texts_are_compared_whole():
    evaluation = EvaluationNGrams(13)
    evaluation.add("set", ["What is 2+2?", "", "?!"])
    assert evaluation.find("what is 2 + 2") == {"set": "what is 2 2"}
    assert evaluation.find("Tell me: what is 2+2?") == {}
    assert evaluation.find("") == evaluation.find("?!") == evaluation.find("🙂") == {}


def test_ngrams_do_not_cross_texts():
    evaluation = EvaluationNGrams(3)
    evaluation.add("set", ["a b", "c d e"])
    assert evaluation.find("a b c d") == {}
    assert evaluation.find("x c d e") == {"set": "c d e"}


def test_every_set_that_overlaps_is_named():
    evaluation = EvaluationNGrams(2)
    evaluation.add("one", ["a b c"])
    evaluation.add("two", ["b c d", "b c d"])
    assert evaluation.find("a b c") == {"one": "a b", "two": "b c"}


def test_an_ngram_of_no_words_is_refused():
    with pytest.raises(ValueError, match="must be at least 1"):
        EvaluationNGrams(0)


def test_real_texts_find_themselves_and_what_is_planted():
    texts = real_texts(120)
    evaluation = EvaluationNGrams()
    evaluation.add("set", texts[:60])
    assert all(evaluation.find(text) for text in texts[:60])
    clean = [text for text in texts[60:] if not evaluation.find(text)]
    assert clean
    longest = max(texts[:60], key=len)
    for text in clean:
        assert evaluation.find(f"{text}\n{longest}")
