"""Judgements as parts of the page."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .charts import reward_among, reward_bars
from .markup import escape, note, paragraph
from .reward_distribution import RewardDistribution, preference


if TYPE_CHECKING:
    from cloud_hf.scoring import Score


# A table of all pairs that can still be read
_MOST_PREFERENCES = 8


def show_writing(critique: str) -> str:
    """A critique that is still being written."""
    return f"<h3>Critique</h3>{paragraph(critique, 'critique writing')}"


def show_judgement(score: "Score", distribution: RewardDistribution, writes_critiques: bool) -> str:
    """A reward, where it falls, and the critiques."""
    spread = ""
    if len(score.rewards) > 1:
        spread = f' <span class="spread">± {score.reward_std:.2f} over {len(score.rewards)} critiques</span>'
    parts = [f'<p class="reward"><strong>{score.reward:+.3f}</strong>{spread}</p>']
    parts.append(note(distribution.describe(score.reward)))
    if distribution.is_usable:
        parts.append(reward_among(distribution.rewards, score.rewards))
    if writes_critiques:
        parts.append(show_critiques(score))
    else:
        parts.append(note("This model writes no critiques: it is a classic reward model."))
    return f"<h3>Reward</h3>{''.join(parts)}"


def show_critiques(score: "Score") -> str:
    """The critiques, each with its reward, and whether it was cut."""
    blocks = []
    for number, (critique, reward, reason) in enumerate(
        zip(score.critiques, score.rewards, score.finish_reasons, strict=True), start=1
    ):
        title = "Critique" if len(score.critiques) == 1 else f"Critique {number}: {reward:+.3f}"
        cut = ""
        if reason == "length":
            cut = '<p class="note bad">Cut: it reached the longest length. The reward was read where it was cut.</p>'
        body = paragraph(critique, "critique") if critique else note("(The model ended it without a word.)")
        blocks.append(f"<h3>{title}</h3>{body}{cut}")
    return "".join(blocks)


def show_ranking(names: Sequence[str], responses: Sequence[str], scores: Sequence["Score"]) -> str:
    """Responses by reward: table, bars, probabilities, and the critiques side by side."""
    rewards = [score.reward for score in scores]
    order = sorted(range(len(scores)), key=lambda index: -rewards[index])
    best = order[0]
    rows = "".join(
        f"<tr><td>{_rank(rewards, index)}</td><th scope='row'>{escape(names[index])}</th>"
        f"<td>{rewards[index]:+.3f}</td><td>{_std(scores[index])}</td>"
        f"<td>{'—' if index == best else _percent(preference(rewards[index], rewards[best]))}</td></tr>"
        for index in order
    )
    head = "".join(
        f"<th scope='col'>{title}</th>"
        for title in ("Rank", "Response", "Reward", "± over critiques", "Preferred to the best")
    )
    table = _table(f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody>", "Ranking")
    bars = reward_bars([names[i] for i in order], [rewards[i] for i in order], [scores[i].reward_std for i in order])
    cards = "".join(
        f'<section class="card"><h3>{_rank(rewards, index)}. {escape(names[index])}: {rewards[index]:+.3f}</h3>'
        f"{paragraph(responses[index])}{show_critiques(scores[index]) if any(scores[index].critiques) else ''}</section>"
        for index in order
    )
    several = any(len(score.rewards) > 1 for score in scores)
    error_bars = (
        "Error bars: one standard deviation over the critiques of a response, to each side."
        if several
        else "Error bars need several critiques of each response: they show how much the rewards depend on the critiques."
    )
    return (
        f"<h3>Ranking</h3>{table}{bars}{note(error_bars)}"
        f"{_preferences(names, rewards) if len(names) <= _MOST_PREFERENCES else ''}"
        f'<h3>Side by side</h3><div class="cards">{cards}</div>'
    )


def _preferences(names: Sequence[str], rewards: Sequence[float]) -> str:
    head = "<td></td>" + "".join(f"<th scope='col'>{escape(name)}</th>" for name in names)
    rows = "".join(
        f"<tr><th scope='row'>{escape(name)}</th>"
        + "".join(
            f"<td>{'—' if row == column else _percent(preference(reward, other))}</td>"
            for column, other in enumerate(rewards)
        )
        + "</tr>"
        for row, (name, reward) in enumerate(zip(names, rewards, strict=True))
    )
    words = "How likely the response of the row is preferred to that of the column (Bradley-Terry, from the rewards)."
    return f"<h3>Preference</h3>{note(words)}" + _table(
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody>", "Preference probabilities"
    )


def _table(content: str, name: str) -> str:
    return f'<div class="wide" tabindex="0" role="region" aria-label="{name}"><table>{content}</table></div>'


def _rank(rewards: Sequence[float], index: int) -> int:
    """Equal rewards share a rank."""
    return 1 + sum(reward > rewards[index] for reward in rewards)


def _std(score: "Score") -> str:
    return f"{score.reward_std:.3f}" if len(score.rewards) > 1 else "—"


def _percent(share: float) -> str:
    if share < 0.001:
        return "&lt; 0.1 %"
    return "&gt; 99.9 %" if share > 0.999 else f"{100 * share:.1f} %"
