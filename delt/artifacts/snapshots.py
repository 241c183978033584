"""Snapshots: how the images of chosen classes looked while they were optimised, and how their losses fell."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from delt import storage

FILE = "snapshots.safetensors"


@dataclass(frozen=True)
class Frame:
    """The recorded images of a pack in the middle of the work; plain arrays, so that it may cross processes."""

    iteration: int  # iterations done
    iterations: int  # of the whole run
    images: np.ndarray  # uint8 [R,C,H,W]
    labels: tuple[int, ...]  # [R]
    sub_batch: tuple[int, ...]  # [R]
    active: int  # images of the pack that were optimised in the last step
    size: int  # images of the pack
    readings: list[dict[str, Any]]  # losses of the last step, as in `Snapshots`; empty before the first


@dataclass
class Snapshots:
    """S snapshots of R images; the last one is the finished set.

    `iterations[s, r]` is the iteration before whose update image r was taken at snapshot s. `readings` are the losses
    at the same iterations: one dict per group with `iteration`, `cross_entropy` (one value per active sub-batch of the
    group, None for one without images) and `bn` (the statistics distance, which belongs to the group as a whole).
    """

    images: Tensor  # uint8 [S,R,C,H,W]
    iterations: Tensor  # int64 [S,R]
    labels: Tensor  # int64 [R]
    sub_batch: Tensor  # int64 [R]
    readings: list[dict[str, Any]]

    def save(self, folder: Path | str) -> list[Path]:
        """Write `snapshots.safetensors` and return its path."""
        path = Path(folder) / FILE
        tensors = {name: getattr(self, name) for name in ("images", "iterations", "labels", "sub_batch")}
        storage.write_tensors(path, tensors, {"readings": json.dumps(self.readings, sort_keys=True)})
        return [path]

    @staticmethod
    def load(folder: Path | str) -> Snapshots:
        """Read what `save` wrote.

        Raises:
            IntegrityError: the file is missing or damaged.
        """
        path = Path(folder) / FILE
        tensors, meta = storage.read_tensors(path)
        try:
            return Snapshots(**tensors, readings=storage.parse_json(meta["readings"], path))
        except (KeyError, TypeError) as error:
            raise storage.IntegrityError(f"{path} holds no snapshots: {error!r}") from error

    def of_class(self, label: int) -> Tensor:
        """uint8 [S,n,C,H,W]: the recorded images of one class, early sub-batches first."""
        rows = torch.nonzero(self.labels == label).squeeze(1)
        return self.images[:, rows[self.sub_batch[rows].argsort(stable=True)]]
