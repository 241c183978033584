"""Training a network: the one loop behind teachers and students, with checkpoints between epochs.

All randomness is a function of the epoch: the caller's batches, and what the network itself draws (dropout). So a run
that goes on from a checkpoint ends with the same bits as one that was never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from delt.config import RuntimeConfig
from delt.data.images import Images, normalise
from delt.errors import DeltError
from delt.runtime import Replay, in_training, seeded
from delt.storage import Slots

TEST_BATCH = 500
GPU_TEST_BATCH = 2000
Given = tuple[Tensor, ...]


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    batches: Callable[[int], Iterator[Given]],
    loss: Callable[..., Tensor],
    rate: Callable[[float], float],
    steps: int,
    *,
    after: Callable[[int], dict[str, Any]] | None = None,
    seed: int = 0,
    slots: Slots | None = None,
    every: float = 60.0,
    graphs: bool = False,
) -> list[dict[str, Any]]:
    """Train `model` in place and return one record per epoch.

    Args:
        batches: `batches(epoch)` yields the tensors that each step needs, on the model's device.
        loss: of one step, from these tensors alone.
        rate: learning rate after a number of passes (fractions count), set before each step.
        steps: steps per epoch.
        after: called after each epoch; what it returns joins the epoch's record.
        seed: of dropout and the like.
        slots: where checkpoints go, at most one in `every` seconds; training goes on from the newest.
        graphs: record the step as a CUDA graph. The loss must then be the same work on the same tensors each time.

    Raises:
        DeltError: the loss of an epoch is not finite; nothing is saved of that epoch.
    """
    history = _resume(model, optimizer, slots) if slots else []
    saved = time.monotonic()
    step = Step(optimizer, loss, Replay(graphs))
    for epoch in range(len(history), epochs):
        with seeded(next(model.parameters()).device, seed, "fit", epoch):
            model.train()
            values = []
            for count, given in enumerate(batches(epoch)):
                set_rate(optimizer, rate(epoch + count / steps))
                values.append(step(given))
            mean = torch.stack(values).mean().item()
        if not math.isfinite(mean):
            raise DeltError(f"training stopped: the loss of epoch {epoch} is {mean}; lower the learning rate")
        history.append({"epoch": epoch, "loss": round(mean, 6), **(after(epoch) if after else {})})
        if slots and time.monotonic() - saved > every:
            _save(model, optimizer, history, slots)
            saved = time.monotonic()
    return history


class Step:
    """One step of an optimizer, which can be recorded: it reads its tensors from where the first batch's were put.

    A batch of another shape, as the last of a pass may be, is done plainly.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, loss: Callable[..., Tensor], replay: Replay) -> None:
        self.optimizer, self.loss, self.replay = optimizer, loss, replay
        self.still: Given = ()

    def __call__(self, given: Given) -> Tensor:
        """Take the step and return its loss."""
        if not self.replay.on:
            return self.body(given)
        if not self.still:
            self.still = tuple(tensor.clone(memory_format=torch.preserve_format) for tensor in given)
        if [tensor.shape for tensor in given] != [tensor.shape for tensor in self.still]:
            return self.body(given)
        for here, now in zip(self.still, given, strict=True):
            here.copy_(now)
        return self.replay("step", lambda: self.body(self.still)).clone()

    def body(self, given: Given) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(*given)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate; where it is a tensor, which a recording reads, in place."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def sgd(parameters: Any, lr: float, device: torch.device, **options: Any) -> torch.optim.Optimizer:
    """SGD that can be recorded on a GPU."""
    if device.type == "cpu":
        return torch.optim.SGD(parameters, lr, **options)
    return torch.optim.SGD(parameters, torch.tensor(lr, device=device), fused=True, **options)


def adamw(parameters: Any, lr: float, device: torch.device, **options: Any) -> torch.optim.Optimizer:
    """AdamW that can be recorded on a GPU."""
    if device.type == "cpu":
        return torch.optim.AdamW(parameters, lr, **options)
    return torch.optim.AdamW(parameters, torch.tensor(lr, device=device), fused=True, capturable=True, **options)


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
def accuracy(
    model: nn.Module,
    images: Images,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    device: torch.device,
    runtime: RuntimeConfig | None = None,
) -> float:
    """Top-1 accuracy in % of a network, in eval mode, on labelled images; in training's arithmetic where a runtime is given."""
    model.eval()
    right = torch.zeros((), dtype=torch.long, device=device)
    batch = TEST_BATCH if device.type == "cpu" else GPU_TEST_BATCH
    with in_training(runtime) if runtime else nullcontext():
        for pixels, labels in images.batches(torch.arange(len(images)), batch):
            logits = model(normalise(pixels.to(device), mean, std))
            right += (logits.argmax(1) == labels.to(device)).sum()
    return 100 * int(right) / len(images)
