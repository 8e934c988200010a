"""Scores as HTML: critiques, rankings and charts. Charts are inline SVG, which follows the page's colors and width."""

from collections.abc import Iterable, Sequence

from cloud_hf.scores import Score
from cloud_hf.spaces_ui import as_text

from .backend import RewardDistribution, preference, rank_of


# A matrix of all pairs is readable up to this size
_MOST_PREFERENCES = 8
_BINS = 24


# -------------------------------------------------------------------------------------------------------------- text


def paragraph(text: str, kind: str = "text") -> str:
    """Show text of a user or a model, line breaks included. The keyboard can scroll it."""
    return f'<div class="{kind}" tabindex="0" dir="auto">{as_text(text)}</div>'


def note(text: str) -> str:
    """Show a line of the demo's own text."""
    return f'<p class="note">{as_text(text)}</p>'


def status(text: str) -> str:
    """Show progress; screen readers announce it."""
    return f'<p class="status" role="status">{as_text(text)}</p>'


def failure(text: str) -> str:
    """Show an error in place of the status."""
    return f'<p class="status bad">{as_text(text)}</p>'


def card(title: str, body: str) -> str:
    """Frame HTML under a title."""
    return f'<section class="card"><h3>{title}</h3>{body}</section>'


def side_by_side(cards: Iterable[str]) -> str:
    """Lay out cards in columns."""
    return f'<div class="cards">{"".join(cards)}</div>'


# ------------------------------------------------------------------------------------------------------------ scores


def show_writing(critique: str) -> str:
    """Show a critique that is still being written."""
    return f"<h3>Critique</h3>{paragraph(critique, 'critique writing')}"


def show_score(score: Score, distribution: RewardDistribution, writes_critiques: bool) -> str:
    """Show a reward, its place in the distribution, and the critiques."""
    spread = ""
    if len(score.rewards) > 1:
        spread = f' <span class="spread">± {score.reward_std:.2f} over {len(score.rewards)} critiques</span>'
    parts = [f'<p class="reward"><strong>{score.reward:+.3f}</strong>{spread}</p>']
    parts.append(note(distribution.describe(score.reward)))
    if distribution.is_usable:
        parts.append(reward_histogram(distribution.rewards, score.rewards))
    if writes_critiques:
        parts.append(show_critiques(score))
    else:
        parts.append(note("This model writes no critiques: it is a classic reward model."))
    return f"<h3>Reward</h3>{''.join(parts)}"


def show_critiques(score: Score) -> str:
    """Show each critique with its reward, and mark truncated ones."""
    blocks = []
    for number, (critique, reward, reason) in enumerate(
        zip(score.critiques, score.rewards, score.finish_reasons, strict=True), start=1
    ):
        title = "Critique" if len(score.critiques) == 1 else f"Critique {number}: {reward:+.3f}"
        cut = ""
        if reason == "length":
            cut = '<p class="note bad">Cut: it reached the longest length. The reward was read where it was cut.</p>'
        body = paragraph(critique, "critique") if critique else note("(The model ended it without writing anything.)")
        blocks.append(f"<h3>{title}</h3>{body}{cut}")
    return "".join(blocks)


def show_ranking(names: Sequence[str], responses: Sequence[str], scores: Sequence[Score]) -> str:
    """Show responses by reward: table, bars, preference probabilities, and the critiques side by side."""
    rewards = [score.reward for score in scores]
    order = sorted(range(len(scores)), key=lambda index: -rewards[index])
    bars = reward_bars([names[i] for i in order], [rewards[i] for i in order], [scores[i].reward_std for i in order])
    error_bars = (
        "Error bars need several critiques per response: they show how much the reward depends on the critique."
    )
    if any(len(score.rewards) > 1 for score in scores):
        error_bars = "Error bars: one standard deviation over the critiques of a response, to each side."
    cards = [
        card(
            f"{rank_of(rewards, i)}. {as_text(names[i])}: {rewards[i]:+.3f}",
            paragraph(responses[i]) + (show_critiques(scores[i]) if any(scores[i].critiques) else ""),
        )
        for i in order
    ]
    return (
        f"<h3>Ranking</h3>{_ranking_table(names, scores, order)}{bars}{note(error_bars)}"
        f"{_preference_table(names, rewards) if len(names) <= _MOST_PREFERENCES else ''}"
        f"<h3>Side by side</h3>{side_by_side(cards)}"
    )


def _ranking_table(names: Sequence[str], scores: Sequence[Score], order: Sequence[int]) -> str:
    rewards = [score.reward for score in scores]
    best = rewards[order[0]]
    rows = [
        f"<td>{rank_of(rewards, i)}</td>{_row_header(names[i])}<td>{rewards[i]:+.3f}</td><td>{_std(scores[i])}</td>"
        f"<td>{'—' if i == order[0] else _percent(preference(rewards[i], best))}</td>"
        for i in order
    ]
    return _table("Ranking", ("Rank", "Response", "Reward", "± over critiques", "Preferred to the best"), rows)


def _preference_table(names: Sequence[str], rewards: Sequence[float]) -> str:
    rows = [
        _row_header(name)
        + "".join(
            f"<td>{'—' if row == column else _percent(preference(reward, other))}</td>"
            for column, other in enumerate(rewards)
        )
        for row, (name, reward) in enumerate(zip(names, rewards, strict=True))
    ]
    words = "How likely the response of the row is preferred to that of the column (Bradley-Terry, from the rewards)."
    return f"<h3>Preference</h3>{note(words)}{_table('Preference probabilities', ('', *names), rows)}"


def _table(name: str, header: Sequence[str], rows: Iterable[str]) -> str:
    head = "".join(f"<th scope='col'>{as_text(title)}</th>" if title else "<td></td>" for title in header)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{name}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _row_header(name: str) -> str:
    return f"<th scope='row'>{as_text(name)}</th>"


def _std(score: Score) -> str:
    return f"{score.reward_std:.3f}" if len(score.rewards) > 1 else "—"


def _percent(share: float) -> str:
    if share < 0.001:
        return "&lt; 0.1 %"
    return "&gt; 99.9 %" if share > 0.999 else f"{100 * share:.1f} %"


# ------------------------------------------------------------------------------------------------------------ charts


def reward_bars(names: Sequence[str], rewards: Sequence[float], stds: Sequence[float]) -> str:
    """Draw a bar per reward, with an error bar of one standard deviation to each side (none for 0.0)."""
    row, left, width = 34, 104, 240
    low = min(0.0, *(reward - std for reward, std in zip(rewards, stds, strict=True)))
    high = max(0.0, *(reward + std for reward, std in zip(rewards, stds, strict=True)))
    scale = width / ((high - low) or 1.0)

    def x_of(value: float) -> float:
        return left + (value - low) * scale

    parts = []
    for index, (name, reward, std) in enumerate(zip(names, rewards, stds, strict=True)):
        middle = index * row + row / 2 + 6
        start, end = sorted((x_of(0.0), x_of(reward)))
        parts.append(_text(left - 8, middle + 5, as_text(name), "end"))
        bar = f'x="{start:.1f}" y="{middle - 10:.1f}" width="{max(end - start, 1):.1f}" height="20"'
        parts.append(f'<rect class="bar" {bar} rx="3"/>')
        if std > 0:
            ends = x_of(reward - std), x_of(reward + std)
            parts.append(_line("error", ends[0], middle, ends[1], middle))
            parts += [_line("error", x, middle - 6, x, middle + 6) for x in ends]
        parts.append(_text(left + width + 10, middle + 5, f"{reward:+.2f}" + (f" ± {std:.2f}" if std > 0 else "")))
    height = len(names) * row + 12
    parts.append(_line("axis", x_of(0.0), 4, x_of(0.0), height - 6))
    spoken = "; ".join(
        f"{name}: {reward:.2f}, standard deviation {std:.2f}"
        for name, reward, std in zip(names, rewards, stds, strict=True)
    )
    return _svg(left + width + 120, height, f"Rewards. {spoken}.", parts)


def reward_histogram(reference: Sequence[float], rewards: Sequence[float]) -> str:
    """Draw a histogram of the model's rewards, with a mark for each of `rewards`."""
    width, height = 460, 120
    low, high = min(*reference, *rewards), max(*reference, *rewards)
    margin = 0.03 * (high - low) or 1.0
    low, high = low - margin, high + margin
    counts = [0] * _BINS
    for reward in reference:
        counts[min(int((reward - low) / (high - low) * _BINS), _BINS - 1)] += 1
    step, floor = (width - 20) / _BINS, height - 24
    parts = []
    for index, count in enumerate(counts):
        if count:
            tall = (floor - 22) * count / max(counts)
            box = f'x="{10 + index * step + 1:.1f}" y="{floor - tall:.1f}" width="{step - 2:.1f}" height="{tall:.1f}"'
            parts.append(f'<rect class="pale" {box}/>')
    parts.append(_line("axis", 10, floor, width - 10, floor))
    for reward in rewards:
        x = 10 + (reward - low) / (high - low) * (width - 20)
        parts += [_line("mark", x, 8, x, floor), _dot(x, 8)]
    parts += [_text(10, height - 6, f"{low:.1f}"), _text(width - 10, height - 6, f"{high:.1f}", "end")]
    spoken = ", ".join(f"{reward:.2f}" for reward in rewards)
    label = f"Histogram of {len(reference)} rewards of this model; this response's: {spoken}."
    return _svg(width, height, label, parts)


def curve(values: Sequence[float], name: str) -> str:
    """Draw a line through `values` at 1, 2, 3, …"""
    width, height, left, floor = 460, 220, 60, 180
    low, high = min(values), max(values)
    scale = (floor - 24) / ((high - low) or 1.0)
    across = (width - left - 30) / max(len(values) - 1, 1)
    points = [(left + 10 + index * across, floor - 4 - (value - low) * scale) for index, value in enumerate(values)]
    parts = [_line("axis", left, 10, left, floor), _line("axis", left, floor, width - 10, floor)]
    parts.append(f'<polyline class="curve" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>')
    parts += [_dot(x, y) for x, y in points]
    every = max(1, len(values) // 12)
    parts += [
        _text(x, floor + 18, str(index), "middle")
        for index, (x, _) in enumerate(points, start=1)
        if index == 1 or index == len(values) or (index % every == 0 and len(values) - index >= every)
    ]
    parts += [_text(left - 6, floor + 1 - (value - low) * scale, f"{value:.2f}", "end") for value in {low, high}]
    parts.append(_text((left + width) / 2, height - 4, "candidates drawn", "middle"))
    spoken = ", ".join(f"{index}: {value:.2f}" for index, value in enumerate(values, start=1))
    return _svg(width, height, f"{name}: {spoken}.", parts)


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _dot(x: float, y: float) -> str:
    return f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'


def _text(x: float, y: float, content: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{content}</text>'


def _svg(width: float, height: float, label: str, parts: list[str]) -> str:
    size = f'viewBox="0 0 {width} {height}" style="max-width: {1.3 * width:.0f}px"'
    return f'<svg class="chart" {size} role="img" aria-label="{as_text(label)}">{"".join(parts)}</svg>'
