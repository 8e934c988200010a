import json

from cloud_hf.data.builders.arguments import BuilderArguments


def test_shards_of_two_versions_of_a_file_have_different_settings(tmp_path):
    """The first halves are equal, and so are all ids."""
    described = []
    for number in range(2):
        rows = [{"id": str(index), "prompt": f"p{index if index < 2 else index + number}"} for index in range(4)]
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        args = BuilderArguments(dataset_name=str(folder / "rows.jsonl"), output_dir=str(tmp_path / "out"), shard="0/2")
        described.append(args.describe(args.load_prompts(), ("prompt",)))
    one, two = described
    assert {name for name in one if one[name] != two[name]} == {"contents_of_all_shards"}
