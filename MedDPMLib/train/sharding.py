"""How do processes share the weights, if they and the optimizer's state do not fit into one process?

PyTorch's fully sharded data parallel (FSDP2): each process keeps a share of every weight, of the average and of the
optimizer's state, and gathers the weights of a part while it computes that part. States are saved and loaded unsharded,
so that a run can resume with or without sharding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from MedDPMLib.errors import MedDPMError
from MedDPMLib.train.blocks import parts


def shard(network: nn.Module, device: torch.device, processes: int, dtype: torch.dtype) -> None:
    """Shards ``network`` in place; it computes in ``dtype`` and keeps float32."""
    try:
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    except ImportError:
        raise MedDPMError(f"--shard needs PyTorch 2.6 or later, this is {torch.__version__}: update it") from None
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh(device.type, (processes,))
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for part in parts(network):
        fully_shard(part, mesh=mesh, mp_policy=policy)
    fully_shard(network, mesh=mesh, mp_policy=policy)


def gathered(network: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The whole states as an unsharded run has them, on the CPU of the main process; all processes call it."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    state = get_optimizer_state_dict(network, optimizer, options=_options())
    if state:  # only the main process has it
        numbers = {name: number for number, (name, _) in enumerate(network.named_parameters())}
        groups = [{**group, "params": [numbers[name] for name in group["params"]]} for group in state["param_groups"]]
        state = {"state": {numbers[name]: value for name, value in state["state"].items()}, "param_groups": groups}
    return {"network": gathered_weights(network), "ema": gathered_weights(ema), "optimiser": state}


def gathered_weights(network: nn.Module) -> dict[str, Tensor]:
    from torch.distributed.checkpoint.state_dict import get_model_state_dict

    return get_model_state_dict(network, options=_options())


def load_weights(network: nn.Module, weights: dict[str, Tensor], *, strict: bool = True) -> None:
    from torch.distributed.checkpoint.state_dict import set_model_state_dict

    set_model_state_dict(network, weights, options=_options(strict))


def load_optimizer(network: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

    names = [name for name, _ in network.named_parameters()]
    groups = [{**group, "params": [names[number] for number in group["params"]]} for group in state["param_groups"]]
    named = {"state": {names[number]: value for number, value in state["state"].items()}, "param_groups": groups}
    set_optimizer_state_dict(network, optimizer, named, options=_options())


def _options(strict: bool = True):
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(full_state_dict=True, cpu_offload=True, strict=strict)
