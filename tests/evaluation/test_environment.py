"""What a report says about the run behind it."""

from cloud_hf import __version__
from cloud_hf.evaluation.environment import environment, opening
from cloud_hf.evaluation.scoring_arguments import ScoringArguments


def test_a_report_says_what_it_rests_on(tmp_path):
    """Rows left out by `limit`, date, versions, device, and a revision that changes with the model."""
    (tmp_path / "config.json").write_text("{}")
    args = ScoringArguments(models=[str(tmp_path)], dataset_name=["d"], output_dir="o", limit=7)
    found = environment(args)
    text = opening("cloud-hf evaluate", found, False)
    assert "Only the first 7 rows of each set or subset were scored (`limit`)." in text
    assert f"cloud_hf {__version__}, torch " in text and "transformers " in text and found["date"] in text
    assert "vllm" not in found["versions"] and found["device"] in text
    (tmp_path / "config.json").write_text('{"trained": "again"}')
    args.limit = None
    again = environment(args)
    assert again["models"] != found["models"] and "\n\nAll rows were scored." in opening("", again, False)


def test_a_report_does_not_hide_that_rows_were_left_out():
    found = {"versions": {}, "models": {}, "limit": None, "date": "2026-01-02", "device": "CPU"}
    left_out = "Some rows were left out: see the notes on each set. Written on"
    assert f"\n\n{left_out}" in opening("", found, True)
    assert f"scored (`limit`). {left_out}" in opening("", found | {"limit": 7}, True)
