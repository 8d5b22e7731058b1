"""Training in several processes, one a GPU: each draws clips of its own, and all take the mean of their gradients.

Started by ``torchrun --nproc-per-node 4 -m scripts.train_world ...``; without it there is one process, and everything
here does nothing. Parameters stay equal because all processes apply the same mean to the same values; optimisers and
averages are therefore not exchanged.
"""

import os
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn


def start(device: str | None = None) -> torch.device:
    """Join the other processes, if torchrun started this one, and return the device that is its own."""
    cuda = device != "cpu" and torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_RANK", "0"))
    own = torch.device(device or (f"cuda:{local}" if cuda else "cpu"))
    if own.type == "cuda":
        torch.cuda.set_device(own)
    if "RANK" in os.environ and not dist.is_initialized():
        if own.type == "cuda":
            dist.init_process_group("nccl", device_id=own)
        else:
            dist.init_process_group("gloo")
    return own


def stop() -> None:
    """Leave the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process; 0 writes, prints and decides."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share(batch: int) -> int:
    """This process's part of a batch.

    Raises:
        ValueError: it cannot be divided evenly.
    """
    if batch % world():
        raise ValueError(f"a batch of {batch} cannot be divided among {world()} processes")
    return batch // world()


def stream(name: str) -> str:
    """The name of a stream of random numbers, another one in each process."""
    return name if rank() == 0 else f"{name} of {rank()}"


def agree(value: int, device: torch.device) -> int:
    """What the first process says; waits for all."""
    if world() == 1:
        return value
    said = torch.tensor([value], device=device)
    dist.broadcast(said, 0)
    return int(said)


def barrier() -> None:
    """Wait for all."""
    if world() > 1:
        dist.barrier()


@torch.no_grad()
def same_parameters(parameters: Sequence[nn.Parameter]) -> None:
    """Give every process the first one's values."""
    if world() > 1:
        for parameter in parameters:
            dist.broadcast(parameter, 0)


@torch.no_grad()
def mean_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace gradients by their mean over all processes, in one message. All have the same ones missing."""
    if world() == 1:
        return
    gradients: list[Tensor] = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    parts = flat.div_(world()).split([gradient.numel() for gradient in gradients])
    torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])
