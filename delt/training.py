"""Training a network: the one loop behind teachers and students, with checkpoints between epochs.

All randomness is a function of the epoch: the caller's batches, and what the network itself draws (dropout). So a run
that goes on from a checkpoint ends with the same bits as one that was never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from delt.data.images import Images, normalise
from delt.errors import DeltError
from delt.runtime import seeded
from delt.storage import Slots

TEST_BATCH = 500


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    losses: Callable[[int], Iterator[Tensor]],
    rate: Callable[[float], float],
    steps: int,
    *,
    after: Callable[[int], dict[str, Any]] | None = None,
    seed: int = 0,
    slots: Slots | None = None,
    every: float = 60.0,
) -> list[dict[str, Any]]:
    """Train `model` in place and return one record per epoch.

    Args:
        losses: `losses(epoch)` yields the loss of each step, computed when asked for.
        rate: learning rate after a number of passes (fractions count), set before each step.
        steps: steps per epoch.
        after: called after each epoch; what it returns joins the epoch's record.
        seed: of dropout and the like.
        slots: where checkpoints go, at most one in `every` seconds; training goes on from the newest.

    Raises:
        DeltError: the loss of an epoch is not finite; nothing is saved of that epoch.
    """
    history = _resume(model, optimizer, slots) if slots else []
    saved = time.monotonic()
    for epoch in range(len(history), epochs):
        with seeded(next(model.parameters()).device, seed, "fit", epoch):
            mean = _pass(model, optimizer, epoch, losses, rate, steps)
        if not math.isfinite(mean):
            raise DeltError(f"training stopped: the loss of epoch {epoch} is {mean}; lower the learning rate")
        history.append({"epoch": epoch, "loss": round(mean, 6), **(after(epoch) if after else {})})
        if slots and time.monotonic() - saved > every:
            _save(model, optimizer, history, slots)
            saved = time.monotonic()
    return history


def _pass(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    epoch: int,
    losses: Callable[[int], Iterator[Tensor]],
    rate: Callable[[float], float],
    steps: int,
) -> float:
    """One pass over the batches; returns the mean loss."""
    model.train()
    values = []
    for step, loss in enumerate(losses(epoch)):
        for group in optimizer.param_groups:
            group["lr"] = rate(epoch + step / steps)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        values.append(loss.detach())
    return torch.stack(values).mean().item()


def _save(model: nn.Module, optimizer: torch.optim.Optimizer, history: list[dict[str, Any]], slots: Slots) -> None:
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{name}": value for name, value in values.items()}
    slots.save(tensors, {"history": history})


def _resume(model: nn.Module, optimizer: torch.optim.Optimizer, slots: Slots) -> list[dict[str, Any]]:
    """Load the newest checkpoint, if there is one, and return the records of the epochs it holds."""
    if (saved := slots.load()) is None:
        return []
    tensors, meta = saved
    model.load_state_dict({name[6:]: value for name, value in tensors.items() if name.startswith("model/")})
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        kind, index, *key = name.split("/")
        if kind == "optimizer":
            state.setdefault(int(index), {})[key[0]] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    history: list[dict[str, Any]] = meta["history"]
    return history


@torch.no_grad()
def accuracy(model: nn.Module, images: Images, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> float:
    """Top-1 accuracy in % of a network, in eval mode, on labelled images."""
    model.eval()
    right = 0
    for pixels, labels in images.batches(torch.arange(len(images)), TEST_BATCH):
        logits = model(normalise(pixels.to(device), mean, std))
        right += int((logits.argmax(1) == labels.to(device)).sum())
    return 100 * right / len(images)
