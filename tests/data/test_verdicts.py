import itertools

import pytest

from cloud_hf.data.verdicts import read_verdict, winner


VERDICTS = ("A>>B", "A>B", "A=B", "B>A", "B>>A")


@pytest.mark.parametrize(
    ("text", "last", "agreed"),
    [
        ("My final verdict is: [[A>B]].", "A>B", "A>B"),
        ("[[A>B]] but maybe [[B>A]]", "B>A", None),
        ("The choices are [[A>>B]], [[A>B]] and [[A=B]]. Mine: **[[A=B]]**", "A=B", None),
        ("[[B>A]] and so [[A<B]]", "B>A", None),
        ("[[A<B]]", "B>A", "A<B"),
        ("First [[A>B]], in the end [[A<B]]", "B>A", None),
        ("First [[A>B]], in the end [[A<<B]]", "B>>A", None),
        ("First [[A>B]], in the end [[b>a]]", "B>A", "A>B"),
        ("First [[A>B]], in the end [[A<=B]]", None, None),
        ("[[A]] has [[B=A]]", "A=B", None),
        ("My verdict: [B<<A]", "A>>B", None),
        ("[[A>B]] and [B>A]", "A>B", "A>B"),
        ("[[A > B]], [A>B], [[]]", "A>B", None),
        ("[[A > B]] [B] [[]]", None, None),
        ("First [[A>B]], in the end [[B > A]]", None, "A>B"),
        ("First [[A>B]], in the end [[B]]", None, None),
        ("First [[A>B]], in the end [[Tie]]", None, "A>B"),
        ("First [[A>B]], in the end [[A&lt;B]]", None, "A>B"),
        (r"First [[A>B]], in the end \[\[B>A\]\]", "B>A", "A>B"),
        ("[[A>B]], as [[1]] and [[says]](https://example.com) show", "A>B", "A>B"),
        ("", None, None),
        (None, None, None),
    ],
)
def test_both_rules(text, last, agreed):
    assert read_verdict(text) == last
    assert read_verdict(text, rule="agreed") == agreed


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="'last' or 'agreed'"):
        read_verdict("[[A>B]]", rule="first")


def test_swapping_both_places_and_games_swaps_the_winner():
    other = {"response_1": "response_2", "response_2": "response_1", "tie": "tie"}
    for game, swapped in itertools.product((*VERDICTS, None, "AB"), repeat=2):
        assert winner(swapped, game) == other[winner(game, swapped)]
    for verdict in VERDICTS:
        assert winner(verdict, verdict) == "tie"  # the judge went by the place


def test_a_strong_verdict_outweighs_a_weak_one():
    assert winner("A>>B", "A>B") == "response_1"
    assert winner("B>A", "B>>A") == "response_1"
    assert winner("A>B", "A>>B") == "response_2"
