"""Scores as HTML: critiques, rankings and charts. Charts are inline SVG, which adapts to the page's colors and width."""

from collections.abc import Iterable, Sequence
from itertools import pairwise

from cloud_hf.scores import Score
from cloud_hf.spaces_ui import as_text

from .judging import Effects
from .rows import JudgedRows, preference, rank_of


# Maximum number of responses for a preference matrix; a larger matrix is hard to read
_MOST_PREFERENCES = 8
_BINS = 30
_HEADER = "The reward if the critique ended here"


# -------------------------------------------------------------------------------------------------------------- text


def paragraph(text: str, kind: str = "text") -> str:
    """Show text from a user or a model with its line breaks. `tabindex` lets keyboard users scroll it."""
    return f'<div class="{kind}" tabindex="0" dir="auto">{as_text(text)}</div>'


def note(text: str) -> str:
    """Show a line of text from the demo itself."""
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


def show_verdict(judged: JudgedRows, score: Score | None = None) -> str:
    """Show a reward and its place among the model's rewards, or a placeholder of the same height while there is no score."""
    number, spread, rewards = "…", "", ()
    if score is not None:
        number, rewards = f"{score.reward:+.3f}", score.rewards
        if len(rewards) > 1:
            spread = f' <span class="spread">± {score.reward_std:.2f} over {len(rewards)} critiques</span>'
    chart = reward_histogram(judged.chosen, judged.rejected, rewards) if judged.is_usable else ""
    return (
        f'<div class="verdict"><h2>Reward</h2><p class="reward"><strong>{number}</strong>{spread}</p>'
        f'<p class="note place" tabindex="0">{as_text(judged.describe(score and score.reward))}</p>{chart}</div>'
    )


def show_writing(critique: str, count: int = 1) -> str:
    """Show the first of `count` critiques as it is being written."""
    return _critique_tabs(
        ["1: …", *(f"{number}: …" for number in range(2, count + 1))],
        [paragraph(critique, "critique writing")] * count,
    )


def show_critiques(score: Score, effects: Effects | None = None, name: str = "critique") -> str:
    """
    Show the critiques; if there are several, each gets a tab whose title contains its reward. The sentences of the first critique are
    tinted according to their `effects`. `name` distinguishes several sets of tabs on a page.
    """
    parts = []
    for critique, reason in zip(score.critiques, score.finish_reasons, strict=True):
        cut = ""
        if reason == "length":
            cut = '<p class="note bad">Truncated at the maximum length; the reward was computed there.</p>'
        first = effects is not None and not parts
        body = _tinted(critique, effects) if first else paragraph(critique, "critique")
        parts.append((body if critique else note("(The model ended the critique without writing anything.)")) + cut)
    return _critique_tabs([f"{i}: {reward:+.3f}" for i, reward in enumerate(score.rewards, start=1)], parts, name)


def _critique_tabs(titles: Sequence[str], bodies: Sequence[str], name: str = "critique") -> str:
    """Lay out critiques as radio buttons that each show one critique. This needs no JavaScript."""
    if len(bodies) == 1:
        return f"<h3>Critique</h3>{bodies[0]}"
    parts = [
        f'<input type="radio" name="{name}" id="{name}-{i}" {"" if i else "checked"}><label for="{name}-{i}">{title}</label>'
        f'<div class="tab">{body}</div>'
        for i, (title, body) in enumerate(zip(titles, bodies, strict=True))
    ]
    return f'<h3>Critiques</h3><div class="critiques" role="group" aria-label="Critiques">{"".join(parts)}</div>'


def _tinted(critique: str, effects: Effects) -> str:
    """Tint each sentence by how much it raises or lowers the reward; a small number after it shows the change."""
    changes = [after - before for before, after in pairwise(effects.rewards)]
    largest = max(map(abs, changes)) or 1.0
    parts, start = [], 0
    for end, change in zip(effects.ends, changes, strict=True):
        kind, tint = "raises" if change >= 0 else "lowers", 100 * abs(change) / largest
        parts.append(
            f'<span class="sentence {kind}" style="--tint: {0.3 * tint:.0f}%" data-effect="{change:+.2f}">{as_text(critique[start:end])}</span>'
        )
        start = end
    return f'<div class="critique" tabindex="0" dir="auto">{"".join(parts)}{as_text(critique[start:])}</div>'


def show_effects(effects: Effects, count: int = 1) -> str:
    """Show the reward after each sentence of the first of `count` critiques."""
    header = _HEADER if count == 1 else f"{_HEADER}: critique 1"
    words = (
        "The small numbers in the critique show how much each sentence changes the reward that the head computes. The head was trained on "
        "complete critiques; before a critique's end, its reward is only a guess."
    )
    chart = curve(effects.rewards, header, "sentences read", first=0)
    return f"<h2>{header}</h2>{chart}{note(words)}"


def show_made(made: str, warnings: Sequence[str] = ()) -> str:
    """Show how a result was computed, and warnings about the model."""
    return "".join(f'<p class="note bad">{as_text(warning)}</p>' for warning in warnings) + note(made)


def show_ranking(
    names: Sequence[str],
    responses: Sequence[str],
    scores: Sequence[Score | None],
    noise: float = 0.0,
    is_final: bool = True,
) -> str:
    """
    Show responses in descending order of reward (those without a score last): a table, bars, preference probabilities, and the critiques
    side by side. Rewards that differ by less than `noise` are marked as too close to rank.
    """
    known = [i for i, score in enumerate(scores) if score is not None]
    order = sorted(known, key=lambda i: -scores[i].reward)
    rewards = [scores[i].reward for i in order]
    ranks = dict(zip(order, (rank_of(rewards, place) for place in range(len(order))), strict=True))
    cards = [
        card(
            f"{ranks[i]}. {as_text(names[i])}: {scores[i].reward:+.3f}",
            paragraph(responses[i])
            + (show_critiques(scores[i], name=names[i].replace(" ", "-")) if any(scores[i].critiques) else ""),
        )
        for i in order
    ]
    cards += [
        card(f"{as_text(names[i])}: …", paragraph(responses[i])) for i in range(len(scores)) if scores[i] is None
    ]
    if not order:
        return f"<h2>Side by side</h2>{side_by_side(cards)}"
    parts = [f"<h2>{'Ranking' if is_final else f'Ranking of {len(order)} so far'}</h2>"]
    parts.append(_ranking_table([names[i] for i in order], [scores[i] for i in order], list(ranks.values())))
    parts += [note(words) for words in _remarks(names, responses, order, rewards, noise)]
    if is_final:
        parts.append(reward_bars([names[i] for i in order], rewards, [scores[i].reward_std for i in order]))
        error_bars = "Error bars show one standard deviation over a response's critiques to each side."
        if all(len(score.rewards) == 1 for score in scores):
            error_bars = "Error bars need several critiques per response: they show how much the reward depends on the critique."
        parts.append(note(error_bars))
        if len(names) <= _MOST_PREFERENCES:
            parts.append(_preference_table(names, [score.reward for score in scores]))
    return f"{''.join(parts)}<h2>Side by side</h2>{side_by_side(cards)}"


def _remarks(
    names: Sequence[str], responses: Sequence[str], order: Sequence[int], rewards: Sequence[float], noise: float
) -> list[str]:
    """List responses with the same text, and rewards that are too close to rank."""
    same: dict[str, list[str]] = {}
    for i in sorted(order):
        same.setdefault(responses[i], []).append(names[i])
    remarks = [f"The same text, judged once: {', '.join(group)}." for group in same.values() if len(group) > 1]
    close = [
        f"{names[a]} and {names[b]}"
        for (a, b), (x, y) in zip(pairwise(order), pairwise(rewards), strict=True)
        if x - y < noise and responses[a] != responses[b]
    ]
    if close:
        remarks.append(
            f"Too close to rank: {', '.join(close)}. Their rewards differ by less than {noise:g}, which rounding alone can change from "
            "batch to batch."
        )
    return remarks


def _ranking_table(names: Sequence[str], scores: Sequence[Score], ranks: Sequence[int]) -> str:
    rows = [
        f"<td>{rank}</td>{_row_header(name)}<td>{score.reward:+.3f}</td>"
        f"<td>{_percent(preference(score.reward, scores[0].reward)) if place else '—'}</td>"
        for place, (name, score, rank) in enumerate(zip(names, scores, ranks, strict=True))
    ]
    header = ["Rank", "Response", "Reward", "Preferred to the best"]
    if any(len(score.rewards) > 1 for score in scores):
        header.append("± over critiques")
        rows = [f"{row}<td>{score.reward_std:.3f}</td>" for row, score in zip(rows, scores, strict=True)]
    return _table("Ranking", header, rows)


def _preference_table(names: Sequence[str], rewards: Sequence[float]) -> str:
    rows = [
        _row_header(name)
        + "".join(
            f"<td>{'—' if row == column else _percent(preference(reward, other))}</td>"
            for column, other in enumerate(rewards)
        )
        for row, (name, reward) in enumerate(zip(names, rewards, strict=True))
    ]
    words = "Probability that the row's response is preferred to the column's (Bradley-Terry, from the rewards)."
    return f"<h2>Preference</h2>{note(words)}{_table('Preference probabilities', ('', *names), rows)}"


def _table(name: str, header: Sequence[str], rows: Iterable[str]) -> str:
    head = "".join(f"<th scope='col'>{as_text(title)}</th>" if title else "<td></td>" for title in header)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{name}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _row_header(name: str) -> str:
    return f"<th scope='row'>{as_text(name)}</th>"


def _percent(share: float) -> str:
    if share < 0.001:
        return "&lt; 0.1 %"
    return "&gt; 99.9 %" if share > 0.999 else f"{100 * share:.1f} %"


# ------------------------------------------------------------------------------------------------------------ charts


def reward_bars(names: Sequence[str], rewards: Sequence[float], stds: Sequence[float]) -> str:
    """Draw a bar per reward, with an error bar of one standard deviation to each side (none if the standard deviation is 0.0)."""
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


def reward_histogram(right: Sequence[float], wrong: Sequence[float], rewards: Sequence[float]) -> str:
    """Draw the model's rewards for right responses above an axis and for wrong ones below it, and mark each of `rewards`."""
    width, middle, tall = 460, 62, 46
    low, high = min(0.0, *right, *wrong, *rewards), max(0.0, *right, *wrong, *rewards)
    margin = 0.03 * (high - low) or 1.0
    low, high = low - margin, high + margin
    scale, step = (width - 20) / (high - low), (width - 20) / _BINS

    def x_of(value: float) -> float:
        return 10 + (value - low) * scale

    sides = [[0] * _BINS, [0] * _BINS]
    for counts, values in zip(sides, (right, wrong), strict=True):
        for value in values:
            counts[min(int((value - low) / (high - low) * _BINS), _BINS - 1)] += 1
    most = max(map(max, sides))
    parts = []
    for kind, counts in zip(("right", "wrong"), sides, strict=True):
        for index, count in enumerate(counts):
            if count:
                height = max(tall * count / most, 1.5)
                top = middle - height if kind == "right" else middle
                box = f'x="{10 + index * step + 1:.1f}" y="{top:.1f}" width="{step - 2:.1f}" height="{height:.1f}"'
                parts.append(f'<rect class="{kind}" {box}/>')
    parts += [_line("axis", 10, middle, width - 10, middle), _line("zero", x_of(0.0), 14, x_of(0.0), middle + tall)]
    for reward in rewards:
        parts += [_line("mark", x_of(reward), 14, x_of(reward), middle + tall), _dot(x_of(reward), 14)]
    floor = middle + tall + 16
    parts += [_text(10, floor, f"{low:.1f}"), _text(width - 10, floor, f"{high:.1f}", "end")]
    if 40 < x_of(0.0) < width - 40:
        parts.append(_text(x_of(0.0), floor, "0", "middle"))
    for kind, x, words in (("right", 10, f"{len(right)} right"), ("wrong", 110, f"{len(wrong)} wrong")):
        parts += [f'<rect class="{kind}" x="{x}" y="2" width="10" height="10"/>', _text(x + 16, 12, words)]
    spoken = ", ".join(f"{reward:.2f}" for reward in rewards) or "not known yet"
    label = (
        f"Histogram of this model's rewards for {len(right)} right and {len(wrong)} wrong responses, from {low:.1f} to {high:.1f}; "
        f"reward of this response: {spoken}."
    )
    return _svg(width, floor + 4, label, parts)


def curve(values: Sequence[float], name: str, unit: str, first: int = 1) -> str:
    """Draw a line through `values`, one for each integer starting at `first`; `unit` names what these integers count."""
    width, height, left, floor = 460, 190, 60, 150
    low, high = min(values), max(values)
    scale = (floor - 24) / ((high - low) or 1.0)
    across = (width - left - 30) / max(len(values) - 1, 1)
    points = [(left + 10 + index * across, floor - 4 - (value - low) * scale) for index, value in enumerate(values)]
    parts = [_line("axis", left, 10, left, floor), _line("axis", left, floor, width - 10, floor)]
    parts.append(f'<polyline class="curve" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>')
    parts += [_dot(x, y) for x, y in points]
    every = max(1, len(values) // 12)
    parts += [
        _text(x, floor + 18, str(index + first), "middle")
        for index, (x, _) in enumerate(points)
        if index in (0, len(values) - 1) or (index % every == 0 and len(values) - index > every)
    ]
    parts += [_text(left - 6, floor + 1 - (value - low) * scale, f"{value:.2f}", "end") for value in {low, high}]
    parts.append(_text((left + width) / 2, height - 4, unit, "middle"))
    spoken = ", ".join(f"{index}: {value:.2f}" for index, value in enumerate(values, start=first))
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
