"""Models by name."""

import pytest

from cloud_hf.loading import read_model_config


@pytest.mark.parametrize("name", ["/no/such", "./rm", "runs/cloud/model"])
def test_a_folder_that_is_not_there_is_said_to_be_missing(name):
    with pytest.raises(FileNotFoundError, match=f"There is no folder {name}, and no model on the Hub can"):
        read_model_config(name)
