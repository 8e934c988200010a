"""What ArenaHard's judge is told, by category and in which turn."""

import pytest

from cloud_hf.data.judge import JUDGE_PROMPT, JUDGED_TEXTS, PLACEHOLDERS, messages_for_judge
from cloud_hf.evaluation.arena_hard.judge import SYSTEMS, JudgeSettings, files_by_category, read_texts


CATEGORIES = ("hard_prompt", "creative_writing")
VERDICTS = ("A>>B", "A>B", "A=B", "B>A", "B>>A")


def judging(template, systems, system_role=True):
    return JudgeSettings(template, 0.0, 64, 3, 0, systems, system_role)


def asked(found: JudgeSettings, category: str) -> list[dict]:
    return messages_for_judge("1+1?", "2", "3", *found.texts(category))


def write(path, text):
    path.write_text(text)
    return str(path)


def test_by_default_as_the_official_protocol_has_it():
    """A system message with the instructions, another one for creative writing, and the texts alone in the user's turn."""
    found = judging(*read_texts(None, [], True, CATEGORIES))
    first, other, old = (asked(found, name) for name in (*CATEGORIES, ""))
    assert [message["role"] for message in first] == ["system", "user"] == [message["role"] for message in other]
    assert first == old and first[0] != other[0] and first[1] == other[1]
    assert "Work out for yourself" in first[0]["content"] and "Work out for yourself" not in other[0]["content"]
    assert first[1]["content"].startswith("<conversation>\n1+1?\n") and first[1]["content"].endswith("</response_b>")
    for system in SYSTEMS.values():
        assert all(system.count(f"[[{verdict}]]") == 1 for verdict in VERDICTS)
        assert not any(mark in system for mark in PLACEHOLDERS)


def test_a_judge_without_a_system_role():
    """Our instructions are the single text of earlier versions; the user's come before the texts."""
    assert read_texts(None, [], False, CATEGORIES) == (JUDGE_PROMPT, {})
    found = judging(JUDGED_TEXTS, {"": "Be fair."}, system_role=False)
    [message] = asked(found, "hard_prompt")
    assert message["role"] == "user" and message["content"].startswith("Be fair.\n\n<conversation>\n1+1?")


def test_words_of_the_user(tmp_path):
    general = write(tmp_path / "general.txt", "\nSay [[A>B]] or [[B>A]].\n")
    art = write(tmp_path / "art.txt", "Be kind. [[A>B]], [[B>A]]")
    texts = write(tmp_path / "texts.txt", "{conversation}|{response_a}|{response_b}")
    whole = write(tmp_path / "whole.txt", "{conversation}|{response_a}|{response_b}: [[A>B]] or [[B>A]]?")
    files = [general, f"creative_writing={art}"]
    found = judging(*read_texts(texts, files, True, CATEGORIES))
    assert asked(found, "hard_prompt") == [
        {"role": "system", "content": "Say [[A>B]] or [[B>A]]."},
        {"role": "user", "content": "1+1?|2|3"},
    ]
    assert asked(found, "creative_writing")[0]["content"].startswith("Be kind.")
    assert read_texts(None, files, True, CATEGORIES)[0] == JUDGED_TEXTS
    # Alone, the user's turn says everything; with instructions, either names the verdicts
    template, systems = read_texts(whole, [], True, CATEGORIES)
    assert template.endswith("[[B>A]]?") and systems == {}
    silent = write(tmp_path / "silent.txt", "Be fair.")
    assert read_texts(whole, [silent], True, CATEGORIES)[1] == {"": "Be fair."}
    with pytest.raises(ValueError, match="does not mention the verdict"):
        read_texts(texts, [silent], True, CATEGORIES)
    with pytest.raises(ValueError, match="no file for questions in the category 'hard_prompt'"):
        read_texts(None, [f"creative_writing={art}"], True, CATEGORIES)
    with pytest.raises(ValueError, match="for the same questions"):
        read_texts(None, [general, art], True, CATEGORIES)
    with pytest.raises(ValueError, match=r"contains \{conversation\}"):
        read_texts(None, [whole], True, CATEGORIES)
    with pytest.raises(ValueError, match="is empty"):
        read_texts(None, [write(tmp_path / "empty.txt", " \n")], True, CATEGORIES)


def test_a_file_may_have_an_equals_sign_in_its_name():
    assert files_by_category(["a=b.txt", "hard_prompt=c=d.txt"], CATEGORIES) == {
        "": ["a=b.txt"],
        "hard_prompt": ["c=d.txt"],
    }


def test_settings_hold_all_that_is_said_and_no_more():
    """One text for everything has the settings that journals had before there were system messages."""
    alone = judging("t", {}).settings()
    assert set(alone) == {"template", "temperature", "max_tokens", "tries", "seed", "retry_temperature"}
    assert judging("t", {"": "s"}).settings() == {**alone, "systems": {"": "s"}, "system_role": True}
    assert judging("t", {"": "s"}, False).settings()["system_role"] is False
