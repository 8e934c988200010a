import shutil

import pytest
from models_for_tests import make_model, save_language_model
from servers_for_tests import make_engine, serving
from tokenizers_for_tests import make_tokenizer

from cloud_hf.model_identity import identify_model
from cloud_hf.serving.backends import BackendArguments, connect


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"backend": "tgi"}, "`backend` is 'tgi'"),
        ({"backend": "server"}, "`server_url` go together"),
        ({"server_url": "http://127.0.0.1:8000"}, "`server_url` go together"),
        ({"vllm_options": "{}"}, "are for `backend` 'vllm'"),
        ({"backend": "vllm", "vllm_options": "{max_model_len: 1}"}, "are not JSON"),
        ({"backend": "vllm", "vllm_options": "[1]"}, "must be a JSON object"),
        *[
            (
                {"backend": "vllm", "vllm_options": f'{{"{name}": "v1"}}'},
                f"`{name}` is 'v1', but .*Pass a folder with all",
            )
            for name in ("revision", "tokenizer", "tokenizer_revision", "hf_config_path", "generation_config")
        ],
    ],
)
def test_arguments_that_do_not_go_together_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        BackendArguments(**options)


def test_options_of_vllm_are_read():
    options = BackendArguments(backend="vllm", vllm_options='{"max_model_len": 4096}').parsed_vllm_options()
    assert options == {"max_model_len": 4096}


@pytest.fixture(scope="module")
def cloud(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cloud")
    model = make_model(save_language_model(tmp_path_factory.mktemp("base")))
    model.save_pretrained(folder)
    make_tokenizer("llama3").save_pretrained(folder)
    return folder, make_engine(model)


def connect_to(folder, engine, version):
    with serving(engine, model_version=version) as (running, _):
        return connect(str(folder), BackendArguments(backend="server", server_url=running.url))[1].model_version


def test_versions_that_can_be_compared_must_be_equal(cloud, tmp_path):
    folder, engine = cloud
    version = identify_model(str(folder))["model_version"]
    shutil.copytree(folder, tmp_path / "copy")
    assert connect_to(tmp_path / "copy", engine, version) == version
    with pytest.raises(ValueError, match=f"with version {'f' * 32}, but .*copy has version {version}"):
        connect_to(tmp_path / "copy", engine, "f" * 32)


def test_versions_that_cannot_be_compared_are_accepted(cloud, tmp_path):
    """A commit of the Hub, a server of an earlier release, and a client with the tokenizer alone."""
    folder, engine = cloud
    for version in ("f" * 40, None):
        assert connect_to(folder, engine, version) == version
    shutil.copytree(folder, tmp_path / "tokenizer", ignore=shutil.ignore_patterns("*.safetensors"))
    assert connect_to(tmp_path / "tokenizer", engine, "f" * 32) == "f" * 32
    (tmp_path / "tokenizer" / "training_args.bin").touch()
    assert connect_to(tmp_path / "tokenizer", engine, "f" * 32) == "f" * 32
