"""
Measure the memory of a training step without executing it: run the actual model on fake tensors, which have shapes but
no storage, and count every allocation. This takes seconds even for a 70B model, and needs only its config.
"""

import copy
import weakref
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import local_torch_dtype

from ..configuration_cloud import CLoudConfig
from ..modeling_cloud import CLoudForRewardModeling, RewardHead
from .lora import HEAD, complete_lora
from .packing import Packing, TokenSequence


_ONE_KERNEL = "one_kernel"


@dataclass(frozen=True)
class StepMemory:
    """Memory use of one micro-batch. The first four fields are numbers of parameters; everything else is in bytes."""

    parameters: int
    trained: int
    linear: int  # parameters in the layers that 4-bit loading quantises
    largest: int  # size of the largest parameter
    # For each moment: the bytes in use other than parameters and gradients, and the bytes of gradients
    moments: np.ndarray

    def peak(self, gradient_share: float, accumulated: bool = False) -> tuple[float, float]:
        """
        Return the bytes of activations and of gradients at the peak of their sum.

        `gradient_share` is the ratio of stored gradient bytes to simulated ones, such as 1/8 on 8 GPUs under ZeRO-2.
        With `accumulated`, all gradients of an earlier micro-batch are already stored.
        """
        other, gradients = self.moments.T
        stored = (np.full_like(gradients, self.gradients) if accumulated else gradients) * gradient_share
        peak = (other + stored).argmax()
        return float(other[peak]), float(stored[peak])

    @property
    def gradients(self) -> int:
        """Bytes of all gradients."""
        return int(self.moments[:, 1].max())


class _Allocations(TorchDispatchMode):
    """
    Dispatch mode that counts each storage from its allocation until it is freed.

    torch's `MemTracker` reports only one peak. On a GPU, sharded gradients take less memory than in the simulation, which can shift
    the peak, so this class records memory use over the complete step.
    """

    def __init__(self, kept: set[int]):
        super().__init__()
        self._sizes: dict[int, tuple[weakref.ref, int]] = {}
        self._kept = kept
        self.live = 0
        self.gradients = 0
        self.moments: list[tuple[int, int]] = [(0, 0)]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        # All operations of the model and of autograd pass through here, so every allocation is one of their outputs
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage):
        # Count storages instead of tensors, because views share a storage. Parameters (`kept`) are counted separately
        key = storage._cdata
        if key in self._sizes or key in self._kept:
            return
        size = storage.nbytes()
        self._sizes[key] = (weakref.ref(storage, lambda _: self._free(key)), size)
        self.live += size
        self._note()

    def _free(self, key: int):
        self.live -= self._sizes.pop(key)[1]

    def add_gradient(self, parameter: torch.Tensor):
        """Count a finished gradient as a gradient, and no longer as a temporary tensor."""
        assert parameter.grad is not None  # the hook runs after accumulation
        storage = parameter.grad.untyped_storage()
        self._count(storage)
        self.gradients += storage.nbytes()
        self._note()

    def _note(self):
        self.moments.append(self.now)

    @property
    def now(self) -> tuple[int, int]:
        """Bytes in use by everything except gradients, and bytes of gradients."""
        return self.live - self.gradients, self.gradients


def simulate_step(
    config: CLoudConfig,
    pairs: int,
    length: int,
    *,
    labelled_share: float = 0.5,
    dtype: torch.dtype = torch.float32,
    autocast: bool = False,
    gradient_checkpointing: bool = True,
    padding_free: bool = False,
    shared_prompt: bool = False,
    prompt_share: float = 0.25,
    lm_loss_chunks: int | None = None,
    head_is_sharded: bool = False,
    lora: LoraConfig | None = None,
) -> StepMemory:
    """
    Simulate one forward and backward pass of the joint loss on pairs whose sequences have `length` tokens each.

    The fraction `labelled_share` of these tokens belongs to the critique. With `shared_prompt`, the fraction `prompt_share` is computed
    only once for both sequences. With `autocast`, the model computes in bf16 with weights of type `dtype`. `head_is_sharded` is for ZeRO-3,
    which gathers the LM head's weight only while the layer computes, so each chunk of the critique loss allocates a separate gradient.
    """
    model = _make_model(copy.deepcopy(config), dtype, lora, gradient_checkpointing)
    if head_is_sharded:
        model.get_output_embeddings().__class__ = _ShardedHead
    counts = _count_parameters(model)
    labelled = int(labelled_share * length) if config.critique else 0
    shared = int(prompt_share * length) if shared_prompt else 0
    shape_BT, attention = (2 * pairs, length), {}
    if padding_free or shared_prompt:
        shape_BT, attention = _lay_out(model, pairs, length, labelled, shared)
    layers = _Layers(model)  # after counting, because it removes layers
    with FakeTensorMode(allow_non_fake_inputs=True):
        # Use fake tensors on the CPU, because on the meta device, attention would take a different code path
        model.to_empty(device="cpu")
        model.tie_weights()
        parameters = list(model.parameters())
        tracker = _Allocations({parameter.untyped_storage()._cdata for parameter in parameters})
        for parameter in parameters:
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(tracker.add_gradient)
        layers.watch(tracker)
        with tracker:
            with torch.autocast("cpu", dtype=torch.bfloat16) if autocast else nullcontext():
                P = max(1, 2 * pairs * labelled)
                loss = _joint_loss(model, 2 * pairs, shape_BT, attention, P, lm_loss_chunks)
            loss.backward()
    return StepMemory(**counts, moments=layers.complete(tracker.moments))


def _count_parameters(model: CLoudForRewardModeling) -> dict[str, int]:
    lm_head = model.get_output_embeddings()
    return {
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "trained": sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
        "largest": max(weight.numel() for weight in model.parameters()),
        "linear": sum(
            module.weight.numel()
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and module is not lm_head and "lora_" not in name and HEAD not in name
        ),
    }


class _Layers:
    """
    The simulated layers of a model. If all layers are of the same kind, they allocate the same memory, so only the
    first three run, and the allocations recorded for one of these three are repeated for the remaining layers.
    """

    # Tensors that are allocated once for all layers are counted in the first or the last layer, so these two may differ from the rest
    _RUN = 3

    def __init__(self, model: CLoudForRewardModeling):
        total = model.config.text_config.num_hidden_layers
        lists = (module for module in model.trunk.modules() if isinstance(module, nn.ModuleList))
        self._layers = next((modules for modules in lists if len(modules) == total), nn.ModuleList())
        self._left_out = 0
        if len(self._layers) > self._RUN and all(_kind(layer) == _kind(self._layers[0]) for layer in self._layers):
            self._left_out = total - self._RUN
            del self._layers[self._RUN :]
        self._starts: dict[tuple[str, int], tuple[int, tuple[int, int]]] = {}

    def watch(self, tracker: _Allocations):
        """Note where in the record each layer's forward and backward passes begin."""
        if self._left_out == 0:
            return

        def note(what: str, index: int):
            self._starts.setdefault((what, index), (len(tracker.moments), tracker.now))

        for index, layer in enumerate(self._layers):
            layer.register_forward_pre_hook(lambda *_, index=index: note("forward", index))
            for parameter in layer.parameters():
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(lambda _, index=index: note("backward", index))

    def complete(self, record: list[tuple[int, int]]) -> np.ndarray:
        """Return the record as if all layers had run: repeat the middle layer's moments, each copy on top of the previous ones."""
        moments = np.array(record)
        if self._left_out == 0:
            return moments
        # Extend the backward pass first, so that the indices of the forward pass stay valid. The backward pass visits
        # the layers in reverse order
        for first, second in ((("backward", 2), ("backward", 1)), (("forward", 1), ("forward", 2))):
            (start, before), (end, after) = self._starts[first], self._starts[second]
            added = np.subtract(after, before)
            copies = [moments[start:end] + added * (copy + 1) for copy in range(self._left_out)]
            moments = np.concatenate([moments[:end], *copies, moments[end:] + added * self._left_out])
        return moments


def _kind(layer: nn.Module) -> list:
    """Return everything on which a layer's memory use can depend: its modules, their settings and the shapes of their weights."""
    return [
        (
            name,
            type(module),
            {
                key: value
                for key, value in vars(module).items()
                if isinstance(value, int | float | str) and key != "layer_idx"
            },
            [(key, value.shape, value.requires_grad) for key, value in module.named_parameters(recurse=False)],
        )
        for name, module in layer.named_modules()
    ]


def _make_model(config, dtype, lora, gradient_checkpointing):
    with local_torch_dtype(dtype):  # modules on the meta device get torch's default data type
        model = CLoudForRewardModeling.without_weights(config).train()
    with torch.device("meta"):
        model.reward_head = RewardHead(config)  # always in fp32
    if not config.critique and not config.tie_word_embeddings:
        model.get_output_embeddings().requires_grad_(False)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if lora is not None:
        complete_lora(lora, model)
        with torch.device("meta"):
            adapted = get_peft_model(model, lora)
        if gradient_checkpointing:
            adapted.enable_input_require_grads()
    return model


class _ShardedHead(nn.Linear):
    """An LM head that [`CLoudForRewardModeling`] treats as sharded, since its class is not `nn.Linear`."""


def _lay_out(
    model: CLoudForRewardModeling, pairs: int, length: int, labelled: int, shared: int
) -> tuple[tuple[int, int], dict[str, Any]]:
    """Flatten pairs whose sequences share their first `shared` tokens. Return the shape of the row, and the attention arguments."""
    model.prepare_for_segments(shared > 0)
    model.set_attn_implementation(_ONE_KERNEL)
    rows = np.arange(2 * pairs)[:, None].repeat(length, axis=1)
    rows[1::2, :shared] = rows[::2, :shared]
    packing = Packing([TokenSequence(ids, length - labelled) for ids in rows], shared_prompt=shared > 0)
    # transformers passes on a 4-d mask unchanged. Otherwise it would build a T x T mask, which this kernel does not
    # need
    return (1, packing.num_tokens), {"attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool)}


class _OneKernel(torch.autograd.Function):
    """
    Stand-in that allocates the same memory as a GPU's attention kernel for flattened batches. In the forward pass, this is
    the output and one softmax sum per head and query.
    """

    @staticmethod
    def forward(ctx, query, key, value):
        output, sums = torch.empty_like(query), query.new_empty(query.shape[1:3], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, sums)
        return output.transpose(1, 2)

    @staticmethod
    def backward(ctx, *grads):
        return tuple(torch.empty_like(states) for states in ctx.saved_tensors[:3])


def _attend_in_one_kernel(module, query, key, value, attention_mask, **kwargs):
    states = [query, key, value]
    if torch.is_autocast_enabled("cpu"):
        states = [each.to(torch.get_autocast_dtype("cpu")) for each in states]
    return _OneKernel.apply(*states), None


def _joint_loss(
    model: CLoudForRewardModeling, sequences: int, shape_BT: tuple[int, int], attention: dict[str, Any],
    P: int, chunks: int | None,
) -> torch.Tensor:  # fmt: skip
    """
    Compute the loss of `CLoudTrainer` for `P` labelled positions. Fake labels have no values to count, so their number
    is an argument.
    """
    ids_BT = torch.zeros(shape_BT, dtype=torch.long)
    options = {"attention_mask": torch.ones_like(ids_BT), **attention}
    if model._accepts_position_ids:
        options["position_ids"] = torch.arange(shape_BT[1]).expand(shape_BT)
    hidden_BTH = model.trunk(input_ids=ids_BT, use_cache=False, **options).last_hidden_state
    hidden_NH = hidden_BTH.reshape(-1, hidden_BTH.shape[-1])
    reward_B = model.reward_from_hidden(hidden_NH[torch.arange(sequences)])[:, 0]
    chosen, rejected = reward_B.chunk(2)
    loss = -F.logsigmoid(chosen - rejected).mean()
    if not model.config.critique:
        return loss
    hidden_PH = hidden_BTH[:, :-1].reshape(-1, hidden_BTH.shape[-1])[torch.arange(P)]
    return loss + model._losses_in_pieces(hidden_PH, torch.zeros(P, dtype=torch.long), chunks).mean()


AttentionInterface.register(_ONE_KERNEL, _attend_in_one_kernel)
AttentionMaskInterface.register(_ONE_KERNEL, sdpa_mask)
