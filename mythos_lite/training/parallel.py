"""One training on several processes, each with its part of every batch.

``torchrun`` starts the processes and tells each its place in environment variables; torch's
``DistributedDataParallel`` keeps their weights the same by averaging their gradients (Li et al. 2020). Every process
draws the same batch and takes every n-th chain of it, so a step is that of one process with the whole batch, rounding
aside. The first process alone writes files; all of them must see the folder.

Outside of ``process_group`` there is one process, and nothing here does anything.
"""

import contextlib
import os
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mythos_lite.task.chains import Batch


def process_count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return process_count() == 1 or dist.get_rank() == 0


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Within, the processes that ``torchrun`` started train together: over NCCL on GPUs, over Gloo on CPUs."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def wait_for_all() -> None:
    """Return when every process has come here."""
    if process_count() > 1:
        dist.barrier()


def check_divisible(name: str, n_chains: int) -> None:
    """``ValueError`` for a number of chains that the processes cannot share equally."""
    if n_chains % (n := process_count()):
        raise ValueError(f"{name}={n_chains} cannot be shared by {n} processes; it must be a multiple of {n}")


def own_part(batch: Batch) -> Batch:
    """Every n-th chain of a batch that all processes have drawn."""
    if (n := process_count()) == 1:
        return batch
    return Batch(*(tensor[dist.get_rank() :: n] for tensor in batch))


def mean_over_processes(value: Tensor) -> Tensor:
    """A number () of each process → their mean, the same in all."""
    if (n := process_count()) == 1:
        return value
    total = value.double()
    dist.all_reduce(total)
    return (total / n).to(value.dtype)


def sum_over_processes(counts: Tensor) -> Tensor:
    """Counts of each process → their sum, the same in all."""
    if process_count() == 1:
        return counts
    total = counts.clone()
    dist.all_reduce(total)
    return total


def averaged(model: nn.Module, objective: Callable) -> Callable:
    """The objective of ``train``, such that a backward pass from its loss leaves the mean gradient of all processes."""
    if process_count() == 1:
        return objective
    loss_of = _Loss(model, objective)
    halts = getattr(model, "halting", None) is not None  # at a single loop its unit gets no gradient to wait for
    together = DistributedDataParallel(loss_of, find_unused_parameters=halts)
    return lambda _, *given: (together(*given), *loss_of.more)


class _Loss(nn.Module):
    """A model and its objective as one module, which returns the loss: the one output that has a gradient."""

    def __init__(self, model: nn.Module, objective: Callable) -> None:
        super().__init__()
        self.model, self.objective, self.more = model, objective, ()

    def forward(self, *given: object) -> Tensor:
        loss, *self.more = self.objective(self.model, *given)
        return loss
