"""FSDP2 settings that keep the reward head in fp32."""

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp.fully_sharded_data_parallel import StateDictType
from torch.distributed.tensor import Shard

from ..adapters import check_tied_copies


def check_fsdp(accelerator: Accelerator):
    """Raise `ValueError` if FSDP is not version 2, would save no model, or would load the weights in one process only."""
    if accelerator.distributed_type != DistributedType.FSDP:
        return
    plugin: Any = accelerator.state.fsdp_plugin
    if not accelerator.is_fsdp2:
        raise ValueError(
            f"FSDP's `fsdp_version` is {plugin.fsdp_version}, which would not keep the reward head in fp32. Set it to 2, as "
            "ds_configs/accelerate_fsdp2.yaml does."
        )
    if plugin.state_dict_type != StateDictType.FULL_STATE_DICT:
        raise ValueError(
            f"FSDP's `fsdp_state_dict_type` is {plugin.state_dict_type.name}: each process would write only its part of the "
            "weights, and no complete model would be saved. Set it to FULL_STATE_DICT, as ds_configs/accelerate_fsdp2.yaml does."
        )
    if plugin.cpu_ram_efficient_loading:
        raise ValueError(
            "FSDP's `fsdp_cpu_ram_efficient_loading` is on, but the reward head is sharded before accelerate would "
            "broadcast the weights. Set it to false; if CPU memory cannot hold one copy of the weights per GPU, use "
            "ds_configs/zero3.json."
        )


def prepare_fsdp2(accelerator: Accelerator, model: nn.Module):
    """
    Shard the reward head and set up mixed precision under FSDP2, before accelerate shards the rest. Do nothing without FSDP2.

    The head becomes a separate fp32 unit, since FSDP2 allows one dtype per unit. With bf16, the language model computes in bf16 on fp32
    weights, and gradients are summed in fp32. Outputs are not cast; accelerate's own policy would round rewards and losses to bf16.
    """
    if not accelerator.is_fsdp2:
        return
    check_tied_copies(model)
    if accelerator.mixed_precision != "no":
        plugin: Any = accelerator.state.fsdp_plugin
        dtype = plugin.mixed_precision_policy.param_dtype
        plugin.mixed_precision_policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for name, module in model.named_modules():
        if name.endswith("reward_head"):
            head: Any = module
            columns, processes = head.out_proj.in_features, accelerator.num_processes
            if columns % processes:
                raise ValueError(
                    f"FSDP2 shards the reward head by its {columns} columns, which are not divisible by {processes} "
                    "processes. Use another number of processes, or ds_configs/zero3.json."
                )
            policy = MixedPrecisionPolicy(cast_forward_inputs=False)
            fully_shard(module.float(), mp_policy=policy, shard_placement_fn=_shard_of_head)


def _shard_of_head(parameter: nn.Parameter) -> Shard | None:
    # `out_proj` has one row, so shard it by columns. If it were sharded by rows, all ranks but one would get empty shards of the weight and
    # the bias. Both shards would have the same address, and accelerate's `fsdp2_switch_optimizer_parameters` matches parameters to shards
    # by address
    return Shard(1) if parameter.ndim == 2 and parameter.shape[0] == 1 else None
