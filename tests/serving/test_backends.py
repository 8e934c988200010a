import pytest

from cloud_hf.serving.backends import BackendArguments


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"backend": "tgi"}, "`backend` is 'tgi'"),
        ({"backend": "server"}, "`server_url` go together"),
        ({"server_url": "http://127.0.0.1:8000"}, "`server_url` go together"),
        ({"vllm_options": "{}"}, "are for `backend` 'vllm'"),
        ({"backend": "vllm", "vllm_options": "{max_model_len: 1}"}, "are not JSON"),
        ({"backend": "vllm", "vllm_options": "[1]"}, "must be a JSON object"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        BackendArguments(**options)


def test_options_of_vllm_are_read():
    options = BackendArguments(backend="vllm", vllm_options='{"max_model_len": 4096}').parsed_vllm_options()
    assert options == {"max_model_len": 4096}
