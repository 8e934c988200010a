"""One style for each model in all plots of a run."""

from matplotlib import rcParams

from cloud_hf.evaluation.report.style import WIDTH, describe_styles, styles_of


def test_a_model_keeps_its_style_whatever_a_plot_shows():
    models = ["classic", "cloud", "cloud, large"]
    everything = styles_of(models)
    assert (
        len({style.color for style in everything.values()})
        == len({style.marker for style in everything.values()})
        == 3
    )
    assert styles_of(["cloud"], models)["cloud"] == everything["cloud"]
    variants = styles_of(["cloud, T = 0.5", "cloud, T = 1", "cloud, large, T = 1"], models)
    first, second, other = variants.values()
    assert first.color == second.color == everything["cloud"].color and first.line != second.line
    assert (first.filled, second.filled) == (True, False)
    assert other.color == everything["cloud, large"].color
    assert describe_styles(models)["cloud"] == {"color": first.color, "marker": first.marker}


def test_names_outside_of_a_run_have_styles_too():
    assert len(styles_of([f"model {number}" for number in range(9)], ["a"])) == 9


def test_text_is_9_points_where_a_page_shows_the_plot():
    shown = 850 / 96  # inches of a page
    assert min(rcParams["font.size"], rcParams["legend.fontsize"]) * shown / WIDTH >= 9
