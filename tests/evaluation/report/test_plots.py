"""Pictures: the words in them, and extreme results."""

import math
from types import SimpleNamespace

import pytest
from evaluations_for_tests import evaluation

from cloud_hf.data.journal import key_of
from cloud_hf.evaluation.analysis import MARGIN
from cloud_hf.evaluation.metrics.selective_accuracy import selective_accuracy
from cloud_hf.evaluation.metrics.self_consistency import self_consistency
from cloud_hf.evaluation.report import plots
from cloud_hf.evaluation.report.plots import (
    plot_accuracy_by_group,
    plot_benchmarks,
    plot_best_of_n,
    plot_margins,
    plot_reliability,
    plot_reward_distributions,
)


def test_the_unit_of_lengths_is_in_the_picture(tmp_path, monkeypatch):
    """The panels name numbers alone."""
    figures = []
    monkeypatch.setattr(plots.plt, "close", figures.append)
    rewards = [[[2.0, 0.0], [1.0, 1.0]], [[1.0, 3.0], [0.0, 0.0]]]
    found = self_consistency(rewards, [1, 1], [12, 40], temperature=0.5, length_of="the column swaps")
    plots.plot_self_consistency({"cloud": found}, {"cloud": 0.5}, tmp_path / "curves.png")
    [figure] = figures
    assert figure.get_suptitle() == "length: the column swaps" and (tmp_path / "curves.png").stat().st_size > 5000
    assert [axes.get_title() for axes in figure.axes] == ["all rows (n = 2)", "length 12 (n = 1)", "length 40 (n = 1)"]


def test_pictures_of_extreme_results(rows, tmp_path):
    """One row has no interval, equal rewards have no margin, and eight models outnumber the colours."""
    results = {f"model {number}": [evaluation(rows[:1], [[1, 1]])] for number in range(8)}
    margins = {"one": {name: found.margins() for name, [found] in results.items()}}
    plot_benchmarks(results, tmp_path / "benchmarks.png")
    plot_margins(margins, tmp_path / "margins.png")
    plot_reliability(margins, tmp_path / "reliability.png")
    sizes = {key_of(path.read_bytes().hex()): path.stat().st_size for path in tmp_path.glob("*.png")}
    assert len(sizes) == 3 and min(sizes.values()) > 5000


def test_reliability_shows_how_much_is_behind_a_bin(tmp_path, monkeypatch):
    """A panel for each set; a bin with one pair has a bar and a small marker, and no line goes through it."""
    figures = []
    monkeypatch.setattr(plots.plt, "close", figures.append)
    margins = [0.1] * 30 + [-0.1] * 20 + [1.5] + [4.0] * 49
    plot_reliability({"chat": {"cloud": margins}, "math": {"cloud": margins, "classic": margins}}, tmp_path / "r.png")
    [figure] = figures
    panels = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title() for axes in panels] == ["chat (n = 100 pairs)", "math (n = 100 pairs)"]
    [points] = panels[0].collections[1:]  # the first are the bars
    areas = points.get_sizes()
    assert areas[0] == pytest.approx(areas[2], rel=0.05) and areas[1] < areas[0] / 5
    bars = [segment[:, 1] for segment in panels[0].collections[0].get_segments()]
    assert all(high - low > 5 for low, high in bars) and bars[1][1] - bars[1][0] > 70  # one pair says little
    line = panels[0].lines[-1].get_ydata()
    assert math.isnan(line[1]) and line[0] == pytest.approx(60) and line[2] == 100


def test_equal_rewards_are_in_the_middle_of_a_bin(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plots.plt, "close", figures.append)
    plot_margins({"chat": {"cloud": [0.0, 1.0, -1.0, 0.0]}, "math": {"cloud": [1.0]}}, tmp_path / "m.png")
    [outline] = figures[0].axes[0].patches
    heights = dict(outline.get_xy().round(6).tolist())
    edges = sorted(abs(x) for x in heights)[:2]
    assert edges[0] == edges[1] > 0 and len([axes for axes in figures[0].axes if axes.axison]) == 2


def test_plots_are_pictures(tmp_path):
    groups = {"3": {"accuracy": 0.5, "ci95": (0.4, 0.6)}, "4": {"accuracy": 1.0, "ci95": (0.9, 1.0)}}
    plot_accuracy_by_group({"classic": groups, "cloud": groups}, "swaps", tmp_path / "a.png")
    plot_reward_distributions({"classic": ([0.0, 1.0], [0.0, -1.0]), "cloud": ([1.0], [1.0])}, tmp_path / "b.png")
    curve = {"rates": {1: 0.25, 2: 0.5}, "standard_errors": {1: 0.1, 2: 0.1}, "oracle": {1: 0.25, 2: 1.0}}
    plot_best_of_n({"classic": curve, "cloud": curve}, tmp_path / "c.png")
    for name in "abc":
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_curves_end_where_fewer_than_20_pairs_are_left(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plots.plt, "close", figures.append)
    found = {}
    for name, pairs in (("cloud", 50), ("classic", 10)):
        right = [1, 0] * (pairs // 2)
        curves = selective_accuracy(right, {MARGIN: range(pairs)}, range(pairs))
        found[name] = SimpleNamespace(selective_accuracy=curves)
    plots.plot_rejection(found, tmp_path / "r.png", ["classic", "cloud"])
    first, second = figures[0].axes
    ends = [max(line.get_xdata()) for line in first.lines[:2]]  # the curve and the best possible one
    assert ends == pytest.approx([60, 60]) and list(second.lines[0].get_xdata()) == [0]
    assert first.get_title() == "cloud (n = 50 pairs)"
    assert first.lines[0].get_color() == plots.COLORS[1] and second.lines[0].get_color() == plots.COLORS[0]
    assert all(line.get_zorder() > first.lines[0].get_zorder() for line in first.lines[1:])
