"""FSDP2 with a reward head that computes in fp32."""

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp.fully_sharded_data_parallel import StateDictType
from torch.distributed.tensor import Shard


def check_fsdp(accelerator: Accelerator):
    """
    Check how FSDP is configured.

    Raises:
        `ValueError`: If it is not FSDP2, no model would be saved, or weights would be read by one process alone.
    """
    if accelerator.distributed_type != DistributedType.FSDP:
        return
    plugin = accelerator.state.fsdp_plugin
    if not accelerator.is_fsdp2:
        raise ValueError(
            f"FSDP's `fsdp_version` is {plugin.fsdp_version}, which would not keep the reward head in fp32. Set it to 2, as "
            "ds_configs/accelerate_fsdp2.yaml does."
        )
    if plugin.state_dict_type != StateDictType.FULL_STATE_DICT:
        raise ValueError(
            f"FSDP's `fsdp_state_dict_type` is {plugin.state_dict_type.name}: every process would write a part of the "
            "weights and no model would be saved. Set it to FULL_STATE_DICT, as ds_configs/accelerate_fsdp2.yaml does."
        )
    if plugin.cpu_ram_efficient_loading:
        raise ValueError(
            "FSDP's `fsdp_cpu_ram_efficient_loading` is on, but the reward head is sharded before accelerate would send "
            "the weights around. Set it to false; where the weights do not fit into CPU memory once per GPU, use "
            "ds_configs/zero3.json."
        )


def prepare_fsdp2(accelerator: Accelerator, model: nn.Module):
    """
    Shard the reward head under FSDP2, and set up mixed precision, before accelerate shards the rest; nothing elsewhere.

    The head is a unit of its own that stays in fp32: FSDP2 takes parameters of one dtype per unit. With bf16 the language
    model computes in bf16 on fp32 weights, gradients are summed in fp32, and outputs are left as they are, where accelerate
    would round rewards and losses to bf16.
    """
    if not accelerator.is_fsdp2:
        return
    if accelerator.mixed_precision != "no":
        plugin = accelerator.state.fsdp_plugin
        dtype = plugin.mixed_precision_policy.param_dtype
        plugin.mixed_precision_policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for name, module in model.named_modules():
        if name.endswith("reward_head"):
            _check_divides(module.out_proj.in_features, accelerator.num_processes)
            policy = MixedPrecisionPolicy(cast_forward_inputs=False)
            fully_shard(module.float(), mp_policy=policy, shard_placement_fn=_shard_of_head)


def _shard_of_head(parameter: nn.Parameter) -> Shard | None:
    # The one row of `out_proj` goes by columns: accelerate finds the optimizer's parameters by the address of their shards,
    # and two empty shards (the bias is the other) have the same
    return Shard(1) if parameter.ndim == 2 and parameter.shape[0] == 1 else None


def _check_divides(hidden_size: int, num_processes: int):
    if hidden_size % num_processes:
        raise ValueError(
            f"FSDP2 shards the reward head by its {hidden_size} columns, which {num_processes} processes do not divide. Take "
            "another number of processes, or ds_configs/zero3.json."
        )
