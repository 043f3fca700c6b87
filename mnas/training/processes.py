"""Several processes that train one model, each on its share of every batch.

They exchange once a step what a backward pass has left: the gradients, averaged over all processes,
of every parameter that has one in any of them. So it makes no difference to them what a rule does,
how many passes it makes and on which paths, and whether two processes agree on that. All of it is
in `Processes`; `ALONE` is one process, which exchanges nothing."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

STEP = timedelta(minutes=5)
"""To wait for another process in a step, which may write a checkpoint to a slow disk. One that has
died is noticed at once."""
WAIT = timedelta(minutes=30)
"""To wait for what another one does alone: the first validates, all read their data."""


class LostError(RuntimeError):
    """Another process has ended, or does not answer."""


@dataclass(frozen=True)
class Processes:
    """rank: the number of this process, of `world`. own_paths: whether each draws paths of its own;
    else all draw the same. patient: the group of torch to wait in for what one process does alone;
    None for its default one."""

    rank: int = 0
    world: int = 1
    own_paths: bool = False
    patient: Any = None

    @property
    def first(self) -> bool:
        """Whether this is the one that scores, writes and speaks."""
        return self.rank == 0

    def check_share(self, batch_size: int) -> None:
        """Raise ValueError for a batch of which not all get the same share."""
        if batch_size % self.world:
            raise ValueError(
                f"batch_size={batch_size} for {self.world} processes; expected a multiple, of "
                "which each gets the same share"
            )

    def share(self, batch: Tensor) -> Tensor:
        """Of a batch (B, ...) the images or labels of this process (B / world, ...)."""
        size = len(batch) // self.world
        return batch[self.rank * size : (self.rank + 1) * size]

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Gradients become the mean over all processes, zeros where one has none; to the bit the
        same in all. What has a gradient nowhere still has none."""
        if self.world == 1:
            return
        import torch
        from torch import distributed

        parameters = list(parameters)
        reached = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8)
        with _answering():
            distributed.all_reduce(reached, distributed.ReduceOp.MAX)
        active = [p for p, somewhere in zip(parameters, reached.tolist(), strict=True) if somewhere]
        for parameter in active:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for grads in _alike([p.grad for p in active]):
            flat = torch.cat([grad.flatten() for grad in grads])
            with _answering():
                distributed.all_reduce(flat)
            _fill(grads, flat / self.world)

    def equal(self, tensors: Iterable[Tensor], patient: bool = False) -> None:
        """All tensors become those of the first process. patient: each has done much alone."""
        if self.world == 1:
            return
        import torch
        from torch import distributed

        for alike in _alike([tensor.detach() for tensor in tensors]):
            flat = torch.cat([tensor.flatten() for tensor in alike])
            with _answering():
                distributed.broadcast(flat, 0, group=self.patient if patient else None)
            _fill(alike, flat)

    def gathered(self, value: Any) -> list[Any]:
        """The value of each process, in all of them."""
        if self.world == 1:
            return [value]
        from torch import distributed

        found = [None] * self.world
        with _answering():
            distributed.all_gather_object(found, value)
        return found

    def of_first(self, value: Any = None) -> Any:
        """The value of the first process, in all of them; they wait for it."""
        if self.world == 1:
            return value
        from torch import distributed

        box = [value]
        with _answering():
            distributed.broadcast_object_list(box, 0, group=self.patient)
        return box[0]


ALONE = Processes()


def launched() -> int:
    """How many processes torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def restarted() -> bool:
    """Whether torchrun has started this process again, after one that failed."""
    return "TORCHELASTIC_RUN_ID" in os.environ and restarts("RESTART_COUNT") > 0


def restarts(which: str = "MAX_RESTARTS") -> int:
    """How often torchrun starts all processes again, or has."""
    return int(os.environ.get(f"TORCHELASTIC_{which}", 0))


@contextlib.contextmanager
def joined() -> Iterator[Processes]:
    """This process among those that torchrun has started: over gloo, and nccl between GPUs, of
    which each has the one of its number on this machine."""
    world = launched()
    if world == 1:
        yield ALONE
        return
    import torch
    from torch import distributed

    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    with _answering():
        # torch gives a restarted process the store of the one before it, with the addresses of
        # processes that are gone, which whoever is quick reads before they are written anew.
        store, rank, world = next(distributed.rendezvous("env://", timeout=WAIT))
        store = distributed.PrefixStore(f"restart_{restarts('RESTART_COUNT')}", store)
        distributed.init_process_group(
            backend, store=store, rank=rank, world_size=world, timeout=STEP
        )
        patient = distributed.new_group(timeout=WAIT)
    try:
        yield Processes(distributed.get_rank(), world, patient=patient)
    except BaseException:
        # It ends, and says why: torchrun, which ends the others of one that has failed, would cut
        # that short.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise
    finally:
        distributed.destroy_process_group()


@contextlib.contextmanager
def _answering() -> Iterator[None]:
    """Where torch waits for the other processes."""
    try:
        yield
    except RuntimeError as error:  # torch's, for a closed connection as for a time that is over
        raise LostError(
            "another process of this training was killed, has failed or does not answer "
            f"({' '.join(str(error).split())[:120]})"
        ) from error


def _alike(tensors: list[Tensor]) -> list[list[Tensor]]:
    """By dtype and device: those that can be sent as one."""
    found: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        found.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    return list(found.values())


def _fill(tensors: list[Tensor], flat: Tensor) -> None:
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view(tensor.shape))


def state_of(module: nn.Module) -> Iterator[Tensor]:
    """What processes must have in common at the beginning."""
    return chain(module.parameters(), module.buffers())
