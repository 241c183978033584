"""A network that all ranks of a run train together: each does its rows of every batch (DistributedDataParallel).

Batches are those of one process, with the same augmentation, learning rates and steps: every rank draws the whole batch and
takes its share of it, losses are weighted by the rows that each has, and BatchNorm layers measure the whole batch, or each of the
parts in which a recipe passes it through the network. So what comes out is what one process would have made, but for rounding.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from delt.data.views import part_sizes, parts_of
from delt.errors import RunError, Stopped
from delt.models.synced import SyncNorm, joint_sum, synced
from delt.runtime import NOTHING, Emit
from delt.world import World

Given = tuple[Tensor, ...]
COLLECTIVE = ("gloo", "nccl", "connection closed", "process group")  # words of errors in collective operations


class Team:
    """The ranks that train one network; without a world this process alone, to which nothing is added.

    Args:
        parts: in which a batch passes through the network, one after the other (`delt.data.views.part_sizes`).
    """

    def __init__(self, world: World | None = None, parts: int = 1) -> None:
        self.world, self.parts = world, parts
        self.rank, self.size = (world.rank, world.size) if world else (0, 1)
        self._stopped: Stopped | None = None
        self._norms: list[nn.Module] = []
        self._pieces: list[int] = []  # this rank's rows of each part of the newest batch
        self._alone = False  # whether every rank does all of that batch

    @property
    def leads(self) -> bool:
        """Whether this rank writes checkpoints."""
        return self.rank == 0

    def synced(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The network with BatchNorm layers that measure whole batches; call it before there is an optimizer."""
        if self.world is None:
            return model
        made = synced(model, device)
        self._norms = [layer for layer in made.modules() if isinstance(layer, (SyncNorm, nn.SyncBatchNorm))]
        return made

    def network(self, model: nn.Module, device: torch.device) -> nn.Module:
        """What to call in place of a `synced` network in training."""
        if self.world is None:
            return model
        self.world.gather()
        known = inspect.signature(DistributedDataParallel).parameters
        buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # torch 2.15 has a new name for it
        options: dict[str, Any] = {buffers: False}  # SyncNorm keeps them equal
        with self.explained():
            return DistributedDataParallel(model, [device] if device.type == "cuda" else None, **options)

    def share(self, given: Given) -> tuple[Given, float]:
        """This rank's rows of a batch (all tensors with a row per image), and the weight of its loss in the mean over ranks.

        Each part of a batch is shared on its own. Where one is too small for two images each, whose statistics BatchNorm could not
        tell, the batch is done whole by all, each on its own (`measuring`).
        """
        count = len(given[0])
        sizes = part_sizes(count, self.parts)
        self._alone = self.world is not None and min(sizes) < 2 * self.size
        if self.world is None or self._alone:
            self._pieces = sizes
            return given, 1.0
        bounds = [[size * rank // self.size for rank in (self.rank, self.rank + 1)] for size in sizes]
        self._pieces = [last - first for first, last in bounds]
        starts = itertools.accumulate(sizes, initial=0)
        rows = [slice(start + first, start + last) for start, (first, last) in zip(starts, bounds, strict=False)]

        def mine(tensor: Tensor) -> Tensor:
            return tensor[rows[0]] if len(rows) == 1 else torch.cat([tensor[some] for some in rows])

        own = tuple(mine(tensor) if tensor.ndim and len(tensor) == count else tensor for tensor in given)
        return own, sum(self._pieces) * self.size / count

    def parts_of(self, images: Tensor) -> tuple[Tensor, ...]:
        """What passes through the network at once, one after the other, of the images [n,..] that `share` gave this rank."""
        return images.split(self._pieces) if self.world else parts_of(images, self.parts)

    @contextlib.contextmanager
    def measuring(self) -> Iterator[None]:
        """BatchNorm layers measure what they see in the block together, but for a batch that each rank does whole."""
        kinds = [layer.__class__ for layer in self._norms]
        try:
            for layer in self._norms if self._alone else ():
                layer.__class__ = nn.BatchNorm2d
            yield
        finally:
            for layer, kind in zip(self._norms, kinds, strict=True):
                layer.__class__ = kind

    def calm(self, emit: Emit) -> Emit:
        """A listener that does not stop this rank alone between two steps: all stop together, after the step (`settle`).

        The first rank reports the progress, which is that of all.
        """
        if self.world is None:
            return emit

        def heard(event: dict[str, object]) -> None:
            try:
                emit(event if self.leads else NOTHING)
            except Stopped as stop:
                self._stopped = stop

        return heard

    def settle(self, loss: Tensor) -> tuple[Tensor, Stopped | None]:
        """The loss of the whole batch from each rank's weighted loss, and whether any rank was told to stop."""
        if self.world is None:
            return loss, None
        both = torch.stack([loss.detach().double() / self.size, torch.full_like(loss, float(self._stopped is not None)).double()])
        mean, stopped = joint_sum(both)
        return mean.to(loss.dtype), (self._stopped or Stopped()) if stopped else None

    def own(self, index: Tensor) -> Tensor:
        """This rank's share of some rows."""
        return index[self.rank :: self.size]

    def sum(self, count: Tensor) -> Tensor:
        """A count over all ranks."""
        with self.explained():
            return joint_sum(count) if self.world else count

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Say what it means where a collective operation fails in the block.

        Raises:
            RunError: another rank was lost.
        """
        try:
            yield
        except RuntimeError as error:
            if self.world is None or not any(word in str(error).lower() for word in COLLECTIVE):
                raise
            reason = str(error).splitlines()[0][:120]
            raise RunError(f"another rank was lost ({reason}); the same command goes on where it was") from error
