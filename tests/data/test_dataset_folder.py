import asyncio

import pytest
from datasets import Features, Value, load_from_disk

from cloud_hf.data.dataset_folder import RECORD, DatasetFolder, Reject, read_record
from cloud_hf.data.journal import JournalError


FEATURES = Features({"id": Value("string"), "text": Value("string")})


async def stream(*results):
    for result in results:
        yield result


def write(folder, *results):
    counts = asyncio.run(folder.write(stream(*results), FEATURES, {"rows_read": len(results)}))
    folder.write_record(counts)
    return counts


def test_rows_and_rejects_are_told_apart_and_counted(tmp_path):
    folder = DatasetFolder(str(tmp_path / "out"), "Test", {"model": "x"})
    rejects = [Reject(1, "b", "dropped", "tie"), Reject(2, "c", "failed", "no"), Reject(3, "d", "dropped", "tie")]
    counts = write(folder, {"id": "a", "text": "1"}, *rejects)
    assert load_from_disk(str(tmp_path / "out")).to_list() == [{"id": "a", "text": "1"}]
    assert (counts["rows"], counts["dropped"], counts["failed"]) == (1, 2, 1)
    assert counts["reasons"] == {"dropped: tie": 2, "failed: no": 1}
    assert read_record(tmp_path / "out") == {"version": 1, "settings": {"model": "x"}, "counts": counts}


def test_until_all_is_written_there_is_no_record(tmp_path):
    """Also where an earlier run left one."""
    folder = DatasetFolder(str(tmp_path / "out"), "Test", {})
    write(folder, {"id": "a", "text": "1"})
    asyncio.run(folder.write(stream({"id": "b", "text": "2"}), FEATURES, {}))
    assert not (tmp_path / "out" / RECORD).exists()
    with pytest.raises(ValueError, match="its run has not finished"):
        read_record(tmp_path / "out")


def test_what_fails_on_the_way_leaves_the_old_dataset_whole(tmp_path):
    async def torn():
        yield {"id": "b", "text": "2"}
        raise OSError("disk full")

    folder = DatasetFolder(str(tmp_path / "out"), "Test", {})
    write(folder, {"id": "a", "text": "1"})
    with pytest.raises(OSError, match="disk full"):
        asyncio.run(folder.write(torn(), FEATURES, {}))
    assert load_from_disk(str(tmp_path / "out")).to_list() == [{"id": "a", "text": "1"}]
    assert read_record(tmp_path / "out")["counts"]["rows"] == 1


def test_a_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(JournalError, match="already contains other files"):
        DatasetFolder(str(tmp_path), "Test", {}).open_journal()
    DatasetFolder(str(tmp_path / "new"), "Test", {}).open_journal().close()
    DatasetFolder(str(tmp_path / "new"), "Test", {}).open_journal().close()
