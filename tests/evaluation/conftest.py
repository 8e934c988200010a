import pytest
from benchmark_files import pair, write_rows


@pytest.fixture
def rows(tmp_path):
    """Rows of RewardBench, one of them of an unknown subset."""
    from cloud_hf.evaluation.benchmarks import reward_bench

    names = ["hep-go", "hep-go", "hep-rust", "made-up"]
    return reward_bench.load(
        [write_rows(tmp_path / "rows.jsonl", [pair(name, number) for number, name in enumerate(names)])]
    )
