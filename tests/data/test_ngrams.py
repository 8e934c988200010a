from cloud_hf.data.duplicates import ngrams, words, words_and_marks


def test_marks_that_end_a_word_do_not_count_and_others_do():
    assert words_and_marks("Why not?") == words_and_marks("why NOT")
    assert words_and_marks("3 + 4 = ?") != words_and_marks("3 - 4 = ?")
    assert words_and_marks("x.y 3.14") == ["x", ".", "y", "3", ".", "14"]
    assert words("3 + 4") == words("3 - 4") == ["3", "4"]


def test_scripts_without_spaces_have_words_too():
    assert words("球在哪里?") == ["球", "在", "哪", "里"]
    assert words("où est la balle") == ["où", "est", "la", "balle"]


def test_ngrams_of_short_texts():
    assert ngrams(["a", "b", "c", "d"], 3) == ["a b c", "b c d"]
    assert ngrams(["a"], 3) == ["a"]
    assert ngrams([], 3) == []
