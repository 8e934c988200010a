import sys
from pathlib import Path

import pytest

import cloud_hf
from cloud_hf.moved_modules import MOVED


def test_every_old_path_leads_to_a_module():
    package = Path(cloud_hf.__file__).parent
    for new in MOVED.values():
        path = package.joinpath(*new.split("."))
        assert path.with_suffix(".py").is_file() or (path / "__init__.py").is_file(), new


def test_an_old_path_warns_at_the_import_statement():
    sys.modules.pop("cloud_hf.conversation", None)
    with pytest.warns(DeprecationWarning, match="cloud_hf.conversation is now cloud_hf.prompts") as caught:
        from cloud_hf.conversation import read_prompt
    assert [warning.filename for warning in caught] == [__file__]
    assert read_prompt("x").messages == [{"role": "user", "content": "x"}]
