import random

import pytest
from shared_data import real_texts

from cloud_hf.data.duplicates import EvaluationNGrams


def words(count, start=0):
    return [f"w{number}" for number in range(start, start + count)]


@pytest.mark.parametrize("n", [2, 8, 13])
@pytest.mark.parametrize("seed", range(20))
def test_n_words_in_a_row_are_found_and_one_fewer_is_not(n, seed):
    noise = random.Random(seed)
    evaluation = EvaluationNGrams(n)
    question = words(40)
    evaluation.add("set", [" ".join(question)])
    start, place = noise.randrange(40 - n), noise.randrange(30)
    for shared in (n, n - 1):
        prompt = words(30, start=100)
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
    with pytest.raises(ValueError, match="at least one word"):
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
