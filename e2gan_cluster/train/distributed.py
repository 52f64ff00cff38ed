"""Averaging gradients over the workers of one training (torch.distributed: gloo on CPUs, NCCL on GPUs)."""

import torch
import torch.distributed as dist

from e2gan_cluster.train.loop import Workers


def this_worker() -> Workers:
    """This process's place in the process group; alone if there is none."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return Workers()
    return Workers(dist.get_rank(), dist.get_world_size(), average_gradients)


@torch.no_grad()
def average_gradients(gradients: list[torch.Tensor]) -> None:
    """Replaces every gradient by its mean over all workers, in one transfer.

    Args:
        gradients: Same shapes in the same order on every worker.
    """
    flat = torch.cat([g.reshape(-1) for g in gradients])
    dist.all_reduce(flat)
    flat.div_(dist.get_world_size())
    parts = flat.split([g.numel() for g in gradients])
    for part, gradient in zip(parts, gradients, strict=True):
        gradient.copy_(part.view_as(gradient))
