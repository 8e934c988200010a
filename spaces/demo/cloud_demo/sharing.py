"""
Share results, as Markdown or as links that contain the texts, options and result.

A link stores everything after the #, in the part that browsers do not send to servers. A link may come from anyone, so it is checked as
strictly as a request, and its contents are shown as text, with a note that nothing was computed here.
"""

import base64
import binascii
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from cloud_hf.markdown import block
from cloud_hf.scores import NotFinite, Sample, Sampling, Score

from . import Problem
from .judging import Effects


# Maximum length of a link in characters (messengers and browsers cut off longer links), and maximum size of its unpacked content in bytes
_LONGEST_LINK = 16_000
_LONGEST_CONTENT = 2**20
_MOST_SCORES = 32


@dataclass(frozen=True)
class Result:
    """
    Contents of a tab: the texts of its boxes by name and, after a run, the options, the scores, and how they were computed.

    `row` is the key of a row; a link to a row contains nothing else.
    """

    tab: str
    texts: Mapping[str, str] = field(default_factory=dict)
    sampling: Sampling | None = None
    scores: Sequence[Score] = ()
    effects: Effects | None = None
    made: str = ""
    row: str = ""
    # Names of the scores; if empty, they are called response 1, response 2, …
    names: Sequence[str] = ()

    def link(self) -> tuple[str, str]:
        """
        Return the part of a link after the #, and a phrase that lists its contents. Long links omit the critiques, then the result.

        Raises:
            `Problem`: If the texts alone are too long.
        """
        texts = {name: text for name, text in self.texts.items() if text}
        page = {"tab": self.tab, "row": self.row} if self.row else {"tab": self.tab, "texts": texts}
        held = {"this row" if self.row else "these texts": page}
        if self.scores and not self.row:
            rewards = [{"rewards": score.rewards, "reasons": score.finish_reasons} for score in self.scores]
            critiques = [
                line | {"critiques": score.critiques} for line, score in zip(rewards, self.scores, strict=True)
            ]
            rest = page | {"options": self.sampling and asdict(self.sampling), "made": self.made}
            effects = self.effects and asdict(self.effects)
            held = {
                "texts, rewards and critiques": rest | {"scores": critiques, "effects": effects},
                "texts and rewards; the critiques are too long for a link": rest | {"scores": rewards},
                "the texts; the result is too long for a link": page,
            }
        for words, content in held.items():
            unpacked = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
            link = base64.urlsafe_b64encode(zlib.compress(unpacked, 9)).decode().rstrip("=")
            if len(link) <= _LONGEST_LINK and len(unpacked) < _LONGEST_CONTENT:
                return link, words
        raise Problem("The texts are too long for a link. Copy the result as Markdown instead.")

    def markdown(self, title: str) -> str:
        """Return the result as Markdown, with each text in a code fence that the text cannot close."""
        parts = [f"### {title}"]
        parts += [f"**{name.capitalize()}**\n\n{block(text)}" for name, text in self.texts.items() if text]
        names = self.names or [f"response {number}" for number in range(1, len(self.scores) + 1)]
        for name, score in zip(names, self.scores, strict=False):
            place = f", {name}" if len(self.scores) > 1 else ""
            spread = f" ± {score.reward_std:.2f} over {len(score.rewards)} critiques" if len(score.rewards) > 1 else ""
            parts.append(f"**Reward{place}: {score.reward:+.3f}**{spread}")
            parts += [block(critique) for critique in score.critiques if critique]
        made = self.made.replace("`", "")
        return "\n\n".join([*parts, *([f"`{made}`"] if made else [])]) + "\n"


def read_link(link: str, tabs: Mapping[str, Sequence[str]]) -> Result | None:
    """
    Parse the part of a link after the #; `tabs` maps each tab to the names of its texts. Returns `None` for an empty link.

    Raises:
        `Problem`: If the link is damaged or does not belong to this demo.
    """
    if not link:
        return None
    try:
        content = json.loads(_unpack(link))
        names = tabs[content["tab"]]
        # Version 0.1 stored the texts at the top level
        texts = {name: _text(text) for name, text in content.get("texts", content).items() if name in names}
        if "scores" not in content:
            return Result(content["tab"], texts, row=_text(content.get("row", "")))
        scores = [_read_score(line) for line in content["scores"][:_MOST_SCORES]]
        effects = content.get("effects") and _read_effects(content["effects"], scores[0])
        sampling = content["options"] and Sampling(**content["options"])
        return Result(content["tab"], texts, sampling, scores, effects, _text(content["made"]))
    except (ValueError, TypeError, LookupError, AttributeError, NotFinite, RecursionError, binascii.Error, zlib.error):
        raise Problem("This link is damaged or belongs to another page. Ask for a new link.") from None


def _unpack(link: str) -> bytes:
    data = base64.urlsafe_b64decode(link.replace("+", "-").replace("/", "_").rstrip("=") + "==")
    unpacker = zlib.decompressobj()
    is_packed = not data.startswith(b"{")  # version 0.1 did not compress
    content = unpacker.decompress(data, _LONGEST_CONTENT) if is_packed else data
    if len(content) >= _LONGEST_CONTENT or (is_packed and not unpacker.eof):
        raise ValueError("The link contains too much text.")
    return content


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("Not text.")
    value.encode()  # raises ValueError for a lone surrogate
    return value


def _numbers(values: Any) -> tuple[float, ...]:
    if not all(type(value) in (int, float) and abs(value) < 1e6 for value in values):
        raise ValueError("Not numbers.")
    return tuple(map(float, values))


def _read_score(line: dict[str, Any]) -> Score:
    rewards, reasons = _numbers(line["rewards"]), line["reasons"]
    critiques = line.get("critiques", [""] * len(rewards))
    if not all(reason in ("stop", "length") for reason in reasons):
        raise ValueError("Not valid finish reasons.")
    return Score.of(
        [
            Sample(reward, _text(critique), finish_reason=reason)
            for reward, critique, reason in zip(rewards, critiques, reasons, strict=True)
        ]
    )


def _read_effects(content: dict[str, Any], score: Score) -> Effects:
    ends, rewards = tuple(content["ends"]), _numbers(content["rewards"])
    if (
        len(rewards) != len(ends) + 1
        or not all(isinstance(end, int) for end in ends)
        or list(ends) != sorted(set(ends))
    ):
        raise ValueError("Not effects.")
    if not ends or ends[0] <= 0 or ends[-1] > len(score.critique):
        raise ValueError("These effects do not belong to this critique.")
    return Effects(ends, rewards)
