import json

import pytest

from cloud_hf.data.builders.arguments import BuilderArguments


@pytest.mark.parametrize("changed", ["prompt", "source"])
def test_shards_of_two_versions_of_a_file_have_different_settings(changed, tmp_path):
    """The first halves are equal, and so are all ids. A column that builders only copy counts as well."""
    described = []
    for number in range(2):
        rows = [{"id": str(index), "prompt": f"p{index}", "source": f"s{index}"} for index in range(4)]
        for row in rows[2:]:
            row[changed] += str(number)
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        args = BuilderArguments(dataset_name=str(folder / "rows.jsonl"), output_dir=str(tmp_path / "out"), shard="0/2")
        described.append(args.describe(args.load_prompts(), ("prompt",)))
    one, two = described
    assert {name for name in one if one[name] != two[name]} == {"contents_of_all_shards"}
