"""What pictures say in words."""

from cloud_hf.evaluation.metrics.self_consistency import self_consistency
from cloud_hf.evaluation.report import plots


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
