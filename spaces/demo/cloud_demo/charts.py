"""Pictures of rewards as SVG: they follow the page's colours and width, and hold numbers and our own words only."""

from collections.abc import Sequence

from .markup import escape


_BINS = 24


def reward_bars(names: Sequence[str], rewards: Sequence[float], stds: Sequence[float]) -> str:
    """
    A bar for each reward, with an error bar of one standard deviation over its critiques to each side.

    Args:
        names (`Sequence[str]`):
            Our names of the responses.
        rewards (`Sequence[float]`):
            Their mean rewards.
        stds (`Sequence[float]`):
            The standard deviations; 0.0 draws no error bar.
    """
    row, left, width = 34, 104, 240
    low = min(0.0, *(reward - std for reward, std in zip(rewards, stds, strict=True)))
    high = max(0.0, *(reward + std for reward, std in zip(rewards, stds, strict=True)))
    scale = width / ((high - low) or 1.0)

    def place(value: float) -> float:
        return left + (value - low) * scale

    parts = []
    for index, (name, reward, std) in enumerate(zip(names, rewards, stds, strict=True)):
        middle = index * row + row / 2 + 6
        start, end = sorted((place(0.0), place(reward)))
        parts.append(f'<text x="{left - 8}" y="{middle + 5:.1f}" text-anchor="end">{escape(name)}</text>')
        bar = f'x="{start:.1f}" y="{middle - 10:.1f}" width="{max(end - start, 1):.1f}" height="20"'
        parts.append(f'<rect class="bar" {bar} rx="3"/>')
        if std > 0:
            ends = place(reward - std), place(reward + std)
            parts.append(_line("error", ends[0], middle, ends[1], middle))
            parts += [_line("error", x, middle - 6, x, middle + 6) for x in ends]
        label = f"{reward:+.2f}" + (f" ± {std:.2f}" if std > 0 else "")
        parts.append(f'<text x="{left + width + 10}" y="{middle + 5:.1f}">{label}</text>')
    height = len(names) * row + 12
    parts.append(_line("axis", place(0.0), 4, place(0.0), height - 6))
    spoken = "; ".join(
        f"{name}: {reward:.2f}, standard deviation {std:.2f}"
        for name, reward, std in zip(names, rewards, stds, strict=True)
    )
    return _svg(left + width + 120, height, f"Rewards. {spoken}.", parts)


def reward_among(reference: Sequence[float], rewards: Sequence[float]) -> str:
    """A histogram of the model's rewards, with a mark for each of `rewards`."""
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
        parts.append(_line("mark", x, 8, x, floor))
        parts.append(f'<circle class="mark" cx="{x:.1f}" cy="8" r="4"/>')
    parts.append(f'<text x="10" y="{height - 6}">{low:.1f}</text>')
    parts.append(f'<text x="{width - 10}" y="{height - 6}" text-anchor="end">{high:.1f}</text>')
    spoken = ", ".join(f"{reward:.2f}" for reward in rewards)
    label = f"Histogram of {len(reference)} rewards of this model; this response's: {spoken}."
    return _svg(width, height, label, parts)


def curve(values: Sequence[float], name: str) -> str:
    """A line through `values` at 1, 2, 3, …"""
    width, height, left, floor = 460, 220, 60, 180
    low, high = min(values), max(values)
    scale = (floor - 24) / ((high - low) or 1.0)
    across = (width - left - 30) / max(len(values) - 1, 1)
    points = [(left + 10 + index * across, floor - 4 - (value - low) * scale) for index, value in enumerate(values)]
    parts = [_line("axis", left, 10, left, floor), _line("axis", left, floor, width - 10, floor)]
    parts.append(f'<polyline class="curve" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>')
    parts += [f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="4"/>' for x, y in points]
    every = max(1, len(values) // 12)
    parts += [
        f'<text x="{x:.1f}" y="{floor + 18}" text-anchor="middle">{index}</text>'
        for index, (x, _) in enumerate(points, start=1)
        if index == 1 or index == len(values) or (index % every == 0 and len(values) - index >= every)
    ]
    for value in {low, high}:
        y = floor - 4 - (value - low) * scale
        parts.append(f'<text x="{left - 6}" y="{y + 5:.1f}" text-anchor="end">{value:.2f}</text>')
    parts.append(f'<text x="{(left + width) / 2}" y="{height - 4}" text-anchor="middle">candidates drawn</text>')
    spoken = ", ".join(f"{index}: {value:.2f}" for index, value in enumerate(values, start=1))
    return _svg(width, height, f"{name}: {spoken}.", parts)


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _svg(width: float, height: float, label: str, parts: list[str]) -> str:
    size = f'viewBox="0 0 {width} {height}" style="max-width: {1.3 * width:.0f}px"'
    return f'<svg class="chart" {size} role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
