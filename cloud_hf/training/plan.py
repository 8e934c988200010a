r"""
Estimate the memory that training needs on each GPU, and the largest micro-batch that fits, from a model's config
alone.

python -m cloud_hf.training.plan --model meta-llama/Meta-Llama-3-70B --gpus 8 --zero 3 --max_length 2048
python -m cloud_hf.training.plan --config examples/configs/llama3-8b/cloud.yaml --model meta-llama/Meta-Llama-3-8B \
    --gpus 8 --zero 3

P is the number of parameters, T the number of trained parameters (all of them, or those of an adapter and the reward head), and N the
number of GPUs. Bytes per GPU:

- Parameters: 4 x P in fp32. With `bf16`, DeepSpeed stores them in bf16, 2 x P; FSDP2 computes in bf16, but stores trained weights in fp32
  and frozen ones in `dtype`. ZeRO-3 and FSDP2 store P / N of them, and gather a layer's weights while it computes (see "Gathered"). In a
  4-bit base, each weight of a layer takes 0.5 bytes plus its share of one fp32 scale per 64 weights, 0.5625 bytes in total; the other
  weights are not quantised.
- Gradients: in the dtype of the trained parameters. ZeRO-2, ZeRO-3 and FSDP2 store T / N of them. Without gradient
  accumulation, gradients appear while activations are freed, so only their combined peak counts; with
  accumulation, gradients stay in memory between micro-batches.
- Optimizer: AdamW has two fp32 moments, 8 x T; 8-bit moments take 2 x T. DeepSpeed adds an fp32 master copy of bf16
  parameters, 4 x T. (If parameters are trained in bf16 without DeepSpeed or FSDP2, the moments are bf16, too.) Every ZeRO
  stage and FSDP2 store 1 / N of this.
- Offload (`ds_configs/zero3_offload.json`) moves stored gradients and optimizer states, and under ZeRO-3 also parameters,
  to CPU memory. DeepSpeed stores gradients there twice: in the parameters' dtype, and in fp32.
- Step: once activations are freed, adamw_torch allocates the square roots of all its second moments, 4 x T (adamw_torch_fused does not),
  and DeepSpeed allocates fp32 gradients, 4 x T. Each GPU allocates them only for its share of the parameters, and under ZeRO-3, for at
  most 1e9 parameters at a time.
- Activations: the tensors that the forward pass keeps, and those that the backward pass adds. Instead of using a
  formula, the plan runs a step of the actual model on fake tensors and counts its allocations. (If all layers are identical,
  it runs only three of them and extrapolates the rest.) With gradient checkpointing, activations take about layers x tokens
  x hidden, plus the activations of one layer. Autocast adds bf16 copies of fp32 weights. With `shared_prompt`, the
  prompt of a pair (`prompt_share` of a sequence) counts once. For attention over a flattened batch, the plan counts what a
  single kernel keeps: queries, keys, values, output, and one softmax sum per head and query.
- LM loss: the fp32 logits of one chunk of the labelled tokens, with their log-softmax and its gradient, about 3 x 4 x
  vocabulary x labelled tokens / chunks. These are part of the activations, but are shown separately. Under ZeRO-3,
  which gathers the LM head only while it computes, the head's gradient exists three times: the sum so far, the next
  chunk's, and the new sum.
- Gathered: ZeRO-3 keeps up to 1e9 gathered parameters (`stage3_max_live_parameters`), FSDP2 keeps two layers, and a 4-bit
  layer is unpacked while it computes.
- Buckets: DDP copies all gradients into buckets. ZeRO-1 and ZeRO-2 take 4 bytes x 5e8 (our configs), ZeRO-3 and FSDP2
  about 4 x hidden x hidden.
- Stage 4: for each response, a pair has one sequence for each of the K written critiques, and one for the dataset's critique. With `beta`,
  the reference model is a frozen copy of all parameters, unless an adapter is trained without `ref_model`. KV caches are not included.
- Reserve: memory for CUDA, NCCL and fragmentation (`reserve_gb`).
"""

import bisect
import copy
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any

import torch
import yaml
from peft import LoraConfig

from ..adapters import is_adapter, read_adapter_config, read_model_config
from ..argument_help import check_bounds, documented
from ..cli import run
from ..configuration_cloud import CLoudConfig, check_types, has_scalar_head, language_config, longest_sequence
from ..modeling_cloud import _VOCABULARY_PER_CHUNK
from .arguments import DataArguments, RewardModelConfig
from .memory import StepMemory, simulate_step
from .outcome_config import CLoudOutcomeConfig


GB = 2**30
# DeepSpeed's defaults: `stage3_max_live_parameters` and `sub_group_size`
_LIVE_PARAMETERS = _SUB_GROUP = 1e9
# Largest micro-batch that the search considers
_MOST_PAIRS = 2**20
# `reduce_bucket_size` in zero1.json and zero2.json, in elements
_BUCKET = 5e8
# Bytes per 4-bit weight, including its share of one fp32 scale per 64 weights
_FOUR_BITS = 0.5 + 4 / 64
# Options that save memory, and the settings that each changes
_SAVINGS: dict[str, dict[str, Any]] = {
    "--gradient_checkpointing True": {"gradient_checkpointing": True},
    "--lora_r 16": {"lora_r": 16},
    "--zero 3": {"zero": "3"},
    "--zero 3 --offload True": {"zero": "3", "offload": True},
}

# Options that default to the recipe's value, and their defaults if the recipe does not set them
_RECIPE_OPTIONS = {
    "micro_batch": 1, "max_length": 2048, "gradient_accumulation_steps": 1, "gradient_checkpointing": True,
    "padding_free": False, "shared_prompt": False, "lm_loss_chunks": None, "optim": "adamw_torch_fused", "bf16": True,
    "dtype": "float32", "lora_r": None, "lora_target_modules": None, "load_in_4bit": False, "num_generations": 0,
    "beta": CLoudOutcomeConfig.beta, "ref_model": None, "attn_implementation": None, "reward_head": None,
}  # fmt: skip
_RECIPE_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(
        ("per_device_train_batch_size", "max_length", "gradient_accumulation_steps", "lm_loss_chunks", "lora_r", "num_generations"),
        (int, NoneType),
    ),
    **dict.fromkeys(
        ("gradient_checkpointing", "padding_free", "shared_prompt", "bf16", "load_in_4bit", "use_peft", "critique"), (bool, NoneType)
    ),
    "beta": (int, float, NoneType),
}  # fmt: skip
# Keys that change a step's memory in ways that the plan does not model, and what to set instead, if anything
_UNPLANNED_KEYS = {
    "token_budget": "; instead, set `micro_batch` and `max_length` to the number of pairs and the sequence length of the largest batch",
    "model_init_kwargs": "; instead, set `dtype` and `attn_implementation`",
    **dict.fromkeys(("deepspeed", "fsdp"), "; instead, set `zero`"),
    **dict.fromkeys(
        ("load_in_8bit", "fp16", "use_dora", "lora_modules_to_save", "lora_target_parameters", "activation_offloading"), ""
    ),
}  # fmt: skip
_OPTIMIZERS = (
    "adamw_torch", "adamw_torch_fused", "adamw_torch_8bit", "adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit",
)  # fmt: skip
# Fields of a plan that add up to the memory of the forward and backward pass, in the order of the printed table
_PARTS = ("parameters", "gradients", "optimizer", "activations", "lm_loss", "gathered", "buckets")


@documented
@dataclass
class PlanArguments:
    """
    Model, recipe and GPUs for a plan.

    Parameters:
        model (`str`, *optional*):
            Hub id or folder of a language or reward model; only its config is read. Defaults to the recipe's model.
        config (`str`, *optional*):
            Recipe (YAML) to take options from. Options on the command line override it.
        classic (`bool`, *optional*, defaults to `False`):
            Plan the classic arm, which has no critique loss. A recipe named `classic.yaml`, or with `critique: false`, implies this option.
        gpus (`int`, *optional*, defaults to `1`):
            Number of GPUs, across all nodes.
        gpu_memory_gb (`float`, *optional*, defaults to `80.0`):
            Memory of each GPU, in GiB.
        reserve_gb (`float`, *optional*, defaults to `4.0`):
            Memory to leave free for CUDA, NCCL and fragmentation, in GiB.
        zero (`str`, *optional*, defaults to `"0"`):
            DeepSpeed stage 1, 2 or 3, `fsdp`, or 0 for DDP.
        offload (`bool`, *optional*, defaults to `False`):
            Keep optimizer states and gradients, and under ZeRO-3 also parameters, in CPU memory (ZeRO only).
        micro_batch (`int`, *optional*):
            Pairs in a micro-batch on each GPU. Defaults to the recipe's value, or 1.
        max_length (`int`, *optional*):
            Tokens per sequence; with `padding_free` or `shared_prompt`, the mean over sequences. Defaults to the
            recipe's value, where null stands for the model's context, or 2048.
        labelled_share (`float`, *optional*, defaults to `0.5`):
            Share of a sequence's tokens that belong to the critique.
        prompt_share (`float`, *optional*):
            Share of a sequence's tokens that the chosen and the rejected sequence have in common, and that `shared_prompt`
            computes only once. Defaults to half of the tokens outside the critique.
        gradient_accumulation_steps (`int`, *optional*):
            Micro-batches per optimizer step. This option and those below default to the recipe's values. If the recipe does not
            set them, their defaults are the same as in training; see `num_generations` for stage 4.
        gradient_checkpointing (`bool`, *optional*):
            Recompute layers in the backward pass instead of keeping their activations.
        padding_free (`bool`, *optional*):
            Concatenate a batch into one row instead of padding it.
        shared_prompt (`bool`, *optional*):
            Concatenate a batch into one row, with one copy of each shared prefix.
        lm_loss_chunks (`int`, *optional*):
            Number of chunks in which the critique loss is computed.
        optim (`str`, *optional*):
            `adamw_torch`, `adamw_torch_fused` or `adamw_bnb_8bit`.
        bf16 (`bool`, *optional*):
            Mixed precision.
        dtype (`str`, *optional*):
            Data type of the weights as loaded: `float32` or `bfloat16`.
        lora_r (`int`, *optional*):
            Rank of an adapter. Without it, all weights are trained.
        lora_target_modules (`list[str]`, *optional*):
            Layers that the adapter covers, `all-linear`, or one regular expression.
        load_in_4bit (`bool`, *optional*):
            QLoRA: an adapter on top of 4-bit weights.
        num_generations (`int`, *optional*):
            Critiques per response in a step of stage 4; 0 plans stage 3. Defaults to the recipe's value, or else to 4 if the
            recipe is named `outcome.yaml`, and to 0 otherwise.
        beta (`float`, *optional*):
            Weight of the KL divergence from a reference model in stage 4. With 0, there is no reference model.
        ref_model (`str`, *optional*):
            Reference model of stage 4, which the plan takes to be as large as `model`.
        attn_implementation (`str`, *optional*):
            `eager` keeps all attention weights; others are planned like `sdpa`.
        reward_head (`str`, *optional*):
            `mlp` or `linear`, for a new reward head. Defaults to `mlp`, or to the head of a scalar model.
    """

    model: str | None = None
    config: str | None = None
    classic: bool = False
    gpus: int = 1
    gpu_memory_gb: float = 80.0
    reserve_gb: float = 4.0
    zero: str = field(default="0", metadata={"choices": ["0", "1", "2", "3", "fsdp"]})
    offload: bool = False
    micro_batch: int | None = None
    max_length: int | None = None
    labelled_share: float = 0.5
    prompt_share: float | None = None
    gradient_accumulation_steps: int | None = None
    gradient_checkpointing: bool | None = None
    padding_free: bool | None = None
    shared_prompt: bool | None = None
    lm_loss_chunks: int | None = None
    optim: str | None = None
    bf16: bool | None = None
    dtype: str | None = None
    lora_r: int | None = None
    lora_target_modules: list[str] | None = None
    load_in_4bit: bool | None = None
    num_generations: int | None = None
    beta: float | None = None
    ref_model: str | None = None
    attn_implementation: str | None = None
    reward_head: str | None = None

    def __post_init__(self):
        stage = Path(self.config or "").stem
        if stage == "critique_sft":
            raise ValueError(
                f"`per_device_train_batch_size` in {self.config} counts critiques, but the plan counts pairs, each with two critiques. "
                "Plan the stage 3 recipe instead, with `micro_batch` set to half of that batch size."
            )
        recipe = _read_recipe(self.config) if self.config else {}
        self.model = self.model or recipe.get("model_name_or_path")
        if self.model is None:
            raise ValueError("Set `model`, or set `config` to a recipe that names a model.")
        self.classic = self.classic or stage == "classic" or recipe.get("critique") is False
        uses_lora, given_length = recipe.get("use_peft", False), self.max_length
        stage_4 = {"num_generations": CLoudOutcomeConfig.num_generations} if stage == "outcome" else {}
        for name, default in (_RECIPE_OPTIONS | stage_4).items():
            key = "per_device_train_batch_size" if name == "micro_batch" else name
            value = recipe.get(key) if uses_lora or not name.startswith("lora") else None
            if getattr(self, name) is None:
                setattr(self, name, default if value is None else value)
        if uses_lora and self.lora_r is None:
            self.lora_r = 16  # TRL's default
        if given_length is None and recipe.get("max_length", 2048) is None:
            self.max_length = longest_sequence(read_model(self).text_config)
            if self.max_length is None:
                raise ValueError(
                    f"`max_length` is null, but the config of {self.model} sets no limit: set `max_length`."
                )
        self._check()

    def _check(self):
        names = ("gpus", "micro_batch", "max_length", "gradient_accumulation_steps", "lm_loss_chunks", "lora_r")
        check_bounds(self, **dict.fromkeys(names, 1), num_generations=0, beta=0)
        if self.gpu_memory_gb <= self.reserve_gb:
            raise ValueError(
                f"`gpu_memory_gb` is {self.gpu_memory_gb:g}, of which `reserve_gb` ({self.reserve_gb:g}) leaves nothing for training; "
                "lower `reserve_gb`."
            )
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"`dtype` is {self.dtype!r}; the plan supports only float32 and bfloat16.")
        if self.prompt_share is not None and not self.shared_prompt:
            raise ValueError(
                "`prompt_share` matters only with `shared_prompt`; set `shared_prompt`, or omit `prompt_share`."
            )
        if not 0 <= self.labelled_share <= 1:
            raise ValueError(f"`labelled_share` is {self.labelled_share}; it must be between 0 and 1.")
        not_critique = 1.0 if self.classic else 1 - self.labelled_share
        if self.prompt_share is None:
            self.prompt_share = not_critique / 2
        if not 0 <= self.prompt_share <= not_critique:
            raise ValueError(
                f"`prompt_share` is {self.prompt_share}; it must be between 0 and {not_critique}, the share outside the critique."
            )
        if self.offload and self.zero not in ("1", "2", "3"):
            raise ValueError("`offload` needs `zero` 1, 2 or 3.")
        if self.load_in_4bit and self.lora_r is None:
            raise ValueError("`load_in_4bit` needs an adapter: set `lora_r`.")
        if self.lora_target_modules is not None and self.lora_r is None:
            raise ValueError("`lora_target_modules` needs an adapter: set `lora_r`.")
        if self.optim not in _OPTIMIZERS:
            raise ValueError(
                f"`optim` is {self.optim!r}; the plan supports only AdamW (torch's, or with 8-bit moments)."
            )

    @property
    def sharded(self) -> bool:
        """Return whether DeepSpeed or FSDP2 wraps the model, which then computes in bf16 without autocast."""
        return self.zero != "0"


@dataclass(frozen=True)
class Plan:
    """
    Memory use on each GPU, in bytes.

    Args:
        parameters, gradients, optimizer, gathered, buckets (`float`):
            See the top of this file. `gradients` are those in memory at the peak of the forward and backward pass.
        activations (`float`):
            All other bytes in use at that peak, except `lm_loss`.
        lm_loss (`float`):
            Bytes that the critique loss adds to that peak.
        host (`float`):
            Offloaded bytes in CPU memory, per GPU.
        step (`float`):
            Bytes in use during the optimizer step, once activations are freed.
        simulated ([`StepMemory`]):
            The simulated step from which the other fields are computed.

    Examples:

    ```python
    >>> plan = make_plan(PlanArguments(model="Qwen/Qwen3-0.6B"))
    >>> plan.total / 2**30
    ```
    """

    parameters: float
    gradients: float
    optimizer: float
    activations: float
    lm_loss: float
    gathered: float
    buckets: float
    host: float
    step: float
    simulated: StepMemory = field(repr=False, compare=False)

    @property
    def backward(self) -> float:
        """Peak bytes during the forward and backward pass."""
        return sum(getattr(self, part) for part in _PARTS)

    @property
    def total(self) -> float:
        """Peak bytes during a training step."""
        return max(self.backward, self.step)


def make_plan(args: PlanArguments, config: CLoudConfig | None = None, micro_batch: int | None = None) -> Plan:
    """
    Plan the memory use for the given arguments.

    Args:
        args ([`PlanArguments`]):
            Model, recipe and GPUs.
        config ([`CLoudConfig`], *optional*):
            Config to use instead of reading the config of `args.model`.
        micro_batch (`int`, *optional*):
            Pairs per GPU, instead of `args.micro_batch`.

    Returns:
        [`Plan`]
    """
    config = config or read_model(args)
    setting: Any = args  # `__post_init__` has filled in every option
    return _plan(setting, config, micro_batch or setting.micro_batch, {})


def _plan(args: Any, config: CLoudConfig, micro_batch: int, simulated: dict[int, StepMemory]) -> Plan:
    """Plan a micro-batch of `micro_batch` pairs. `simulated` caches the steps simulated so far, by number of pairs."""
    sequences = micro_batch * (args.num_generations + 1)  # the dataset's critiques are also trained on, as an anchor
    if micro_batch not in simulated:
        simulated[micro_batch] = _simulate(args, config, sequences)
    return _divide(args, config, simulated[micro_batch], _lm_loss_bytes(args, config, sequences))


def largest_micro_batch(args: Any, config: CLoudConfig, plan: Plan) -> int:
    """Return the largest number of pairs that fits on each GPU, or 0 if not even one does. `plan` is the plan for `args.micro_batch`."""
    limit = (args.gpu_memory_gb - args.reserve_gb) * GB
    simulated = {args.micro_batch: plan.simulated}

    def fits(pairs: int) -> bool:
        return _plan(args, config, pairs, simulated).total <= limit

    if not fits(1):
        return 0
    # A simulation takes seconds, and the expected number is nearly always right, so start there and double the step until the result is
    # bracketed
    most = max(1, _expected_largest(args, config, limit, simulated))
    too_many, step = most + 1, 1
    while not fits(most):
        most, too_many, step = max(1, most - step), most, 2 * step
    while too_many <= _MOST_PAIRS and fits(too_many):
        most, too_many, step = too_many, too_many + step, 2 * step
    return bisect.bisect_left(range(too_many), True, lo=most + 1, key=lambda pairs: not fits(pairs)) - 1


def _expected_largest(args: Any, config: CLoudConfig, limit: float, simulated: dict[int, StepMemory]) -> int:
    """
    Predict the largest number of pairs that fits, from simulations of one pair and of two: at each point in a step (`moments`), the number
    of allocated bytes is linear in the number of pairs. Return 0 if not even one pair fits, or if the two simulations do not have the same
    number of points.
    """
    one, two = (_plan(args, config, pairs, simulated).simulated for pairs in (1, 2))
    if one.moments.shape != two.moments.shape:
        return 0

    def fit(pairs: int) -> bool:
        moments = one.moments + (pairs - 1) * (two.moments - one.moments)
        return _plan(args, config, pairs, {pairs: dataclasses.replace(one, moments=moments)}).total <= limit

    most = 1
    while most < _MOST_PAIRS and fit(most):
        most *= 2
    return bisect.bisect_left(range(1, most), True, key=lambda pairs: not fit(pairs))


def read_model(args: Any) -> CLoudConfig:
    """Read the config of the reward model to train. Raises `ValueError` if training would continue an adapter other than the planned one."""
    config = read_model_config(args.model)
    if is_adapter(args.model):
        own = read_adapter_config(args.model)
        if args.lora_r != own.r or args.lora_target_modules is None:
            raise ValueError(
                f"{args.model} is an adapter, which training continues. Set `lora_r` to its rank, {own.r}, and `lora_target_modules` to the "
                "layers in its adapter_config.json."
            )
    if not isinstance(config, CLoudConfig):
        head = "linear" if args.classic and has_scalar_head(config) else "mlp"
        config = CLoudConfig(text_config=language_config(config), reward_head=args.reward_head or head)
    config.critique = not args.classic and config.critique
    if args.attn_implementation == "eager":
        config._attn_implementation = "eager"
    return config


def _simulate(args: Any, config: CLoudConfig, pairs: int) -> StepMemory:
    bf16_weights = args.dtype == "bfloat16" or (args.bf16 and (args.sharded or args.load_in_4bit))
    lora = None
    if args.lora_r is not None:
        targets = args.lora_target_modules
        # TRL unwraps a list of one item, because PEFT knows "all-linear" and regular expressions only as strings
        if isinstance(targets, list) and len(targets) == 1 and not targets[0].isidentifier():
            targets = targets[0]
        lora = LoraConfig(r=args.lora_r, target_modules=targets, task_type="CAUSAL_LM")
    return simulate_step(
        config,
        pairs,
        args.max_length,
        labelled_share=args.labelled_share,
        dtype=torch.bfloat16 if bf16_weights else torch.float32,
        autocast=args.bf16 and not args.sharded,
        gradient_checkpointing=args.gradient_checkpointing,
        padding_free=args.padding_free,
        shared_prompt=args.shared_prompt,
        prompt_share=args.prompt_share,
        lm_loss_chunks=args.lm_loss_chunks,
        head_is_sharded=args.zero == "3",
        lora=lora,
    )


def _lm_loss_bytes(args: Any, config: CLoudConfig, pairs: int) -> float:
    """Return the bytes of the fp32 logits for one chunk of labelled tokens, their log-softmax and its gradient."""
    if not config.critique:
        return 0.0
    vocabulary = config.text_config.vocab_size
    chunks = args.lm_loss_chunks or max(1, vocabulary // _VOCABULARY_PER_CHUNK)
    return 3 * 4 * vocabulary * args.labelled_share * 2 * pairs * args.max_length / chunks


def _bytes_of_weights(args: Any) -> tuple[int, int]:
    """Return the bytes per frozen parameter outside 4-bit layers, and per trained parameter."""
    loaded = 2 if args.dtype == "bfloat16" else 4
    if args.zero == "fsdp":  # FSDP2 stores frozen weights as loaded, and trained ones in fp32 if `bf16` is set
        return loaded, 4 if args.bf16 else loaded
    weight = 2 if loaded == 2 or (args.bf16 and args.sharded) else 4
    if args.lora_r is not None and not args.sharded:
        # PEFT keeps an adapter in fp32 except under DeepSpeed, and TRL casts it to bf16 on a 4-bit base
        return weight, 2 if args.load_in_4bit else 4
    return weight, weight


def _gathered_bytes(args: Any, config: CLoudConfig, step: StepMemory) -> float:
    """Return the bytes of parameters that are gathered, or unpacked from 4 bits, only while their layer computes."""
    layers = config.text_config.num_hidden_layers
    gathered = 0.0
    if args.zero in ("3", "fsdp"):
        # FSDP2 prefetches the next layer while one layer computes, so two are gathered at a time
        live = _LIVE_PARAMETERS if args.zero == "3" else max(step.largest, 2 * step.linear / layers)
        gathered = min(max(live, step.largest), step.parameters) * (2 if args.bf16 else 4)
    if args.load_in_4bit:
        # Modules are unpacked to bf16 one at a time, and the largest of a layer's seven linear modules has at most half of
        # the layer's weights
        gathered += 2 * step.linear / layers / 2
    return gathered


def _divide(args: Any, config: CLoudConfig, step: StepMemory, lm_loss: float) -> Plan:
    """Divide the memory of a step among GPUs, with the formulas at the top of this file."""
    weight, trained = _bytes_of_weights(args)
    stage = 3 if args.zero == "fsdp" else int(args.zero)  # FSDP2 shards everything that ZeRO-3 shards
    of_optimizer, of_gradients, of_parameters = (args.gpus if stage >= least else 1 for least in (1, 2, 3))
    moments = 2 if "8bit" in args.optim else 4 if trained == 2 and stage == 0 else 8
    master = 4 if trained == 2 and args.zero in ("1", "2", "3") else 0
    optimizer = step.trained * (moments + master) / of_optimizer
    parameters = _parameter_bytes(args, step, weight, trained) / of_parameters
    # The simulation keeps all gradients on one GPU, possibly in a different data type
    gradient_share = trained * step.trained / max(1, step.gradients) / of_gradients
    if stage == 0:
        buckets = trained * step.trained if args.gpus > 1 else 0.0
    else:
        buckets = 4 * (_BUCKET if stage < 3 else config.text_config.hidden_size**2)
    host = 0.0
    if args.offload:
        # DeepSpeed keeps gradients in CPU memory twice: in the parameters' dtype, and in fp32
        host, optimizer, gradient_share = optimizer + (trained + 4) * step.trained / args.gpus, 0.0, 0.0
        if stage == 3:
            host, parameters = host + parameters, 0.0
    activations, gradients = step.peak(gradient_share, accumulated=args.gradient_accumulation_steps > 1)
    # The step allocates square roots of all second moments (unless fused), and DeepSpeed's fp32 gradients
    stepped = step.trained / of_optimizer
    if args.zero == "3":
        stepped = min(stepped, _SUB_GROUP)
    made = 0.0 if args.offload else stepped * (4 * (args.optim == "adamw_torch") + master)
    return Plan(
        parameters=parameters,
        gradients=gradients,
        optimizer=optimizer,
        activations=activations - min(lm_loss, activations),
        lm_loss=min(lm_loss, activations),
        gathered=_gathered_bytes(args, config, step),
        buckets=buckets,
        host=host,
        step=parameters + gradient_share * step.gradients + optimizer + buckets + made,
        simulated=step,
    )


def _parameter_bytes(args: Any, step: StepMemory, weight: int, trained: int) -> float:
    """Return the bytes of all parameters, including those of a reference model, before they are sharded."""
    frozen = step.parameters - step.trained
    frozen_bytes = frozen * weight
    if args.load_in_4bit:
        frozen_bytes = step.linear * _FOUR_BITS + (frozen - step.linear) * (2 if args.bf16 else 4)
    reference = 0
    if args.num_generations and args.beta and (args.lora_r is None or args.ref_model):
        # With an adapter, `frozen` counts all parameters of the model
        reference = weight * (step.parameters if args.lora_r is None else frozen)
    return frozen_bytes + step.trained * trained + reference


def _read_recipe(path: str) -> dict:
    with open(path, encoding="utf8") as file:
        recipe = yaml.safe_load(file)
    if not isinstance(recipe, dict):
        raise ValueError(f"`config` {path} is not a recipe: a recipe is a YAML mapping of options.")
    arguments = (DataArguments, CLoudOutcomeConfig, RewardModelConfig)
    known = {"env", *(option.name for kind in arguments for option in dataclasses.fields(kind))}
    if unknown := sorted(recipe.keys() - known):
        raise ValueError(f"{path} sets {', '.join(unknown)}, which the training scripts do not accept.")
    for key, cure in _UNPLANNED_KEYS.items():
        if recipe.get(key):
            raise ValueError(f"{path} sets `{key}`, which the plan does not model. Use a recipe without it{cure}.")
    check_types(recipe, _RECIPE_TYPES, place=path)
    return recipe


def table(args: Any, plan: Plan, largest: int) -> str:
    """Format a plan as text."""
    pairs = f"{args.micro_batch} pair{'s' if args.micro_batch > 1 else ''}"
    rows = [(part, getattr(plan, part)) for part in _PARTS]
    lines = [f"{args.model}: {pairs} of up to {args.max_length} tokens each on one of {args.gpus} GPU(s), GiB per GPU"]
    lines += [f"  {name.replace('_', ' '):<12} {size / GB:9.2f}" for name, size in rows if size]
    lines += [f"  {'total':<12} {plan.total / GB:9.2f} of {args.gpu_memory_gb - args.reserve_gb:.0f} usable"]
    if plan.host:
        lines += [f"  {'in CPU memory':<12} {plan.host / GB:7.2f} for each GPU"]
    lines += [f"Largest micro-batch that fits: {largest} pairs" if largest else "Not even one pair fits."]
    return "\n".join(lines)


def what_helps(args: Any, config: CLoudConfig) -> str:
    """
    Return a sentence that names each option with which one pair fits, and the memory that the pair then takes. If the pair does not fit
    with any option, the sentence gives the lowest of these amounts, and its option if any.
    """
    one_pair = copy.copy(args)
    one_pair.micro_batch = 1
    totals = {"": make_plan(one_pair, config).total / GB}
    for option, changes in _SAVINGS.items():
        other = copy.copy(one_pair)
        vars(other).update(changes)
        if other != one_pair and ("zero" not in changes or args.gpus > 1):
            totals[f" with `{option}`"] = make_plan(other, config).total / GB
    fitting = [option for option, total in totals.items() if total <= args.gpu_memory_gb - args.reserve_gb]
    named = fitting or [min(totals, key=totals.__getitem__)]
    says = ", ".join(f"{totals[option]:.2f} GiB{option}" for option in named)
    return f"One pair takes {says}." if fitting else f"One pair takes at least {says}: use more or larger GPUs."


ARGUMENTS = (PlanArguments,)


def main(args: PlanArguments):
    config = read_model(args)
    plan = make_plan(args, config)
    largest = largest_micro_batch(args, config, plan)
    print(table(args, plan, largest))
    if not largest:
        print(what_helps(args, config))


if __name__ == "__main__":
    run("cloud_hf.training.plan")
