"""Training a network: the one loop behind teachers and students, with checkpoints between any two steps.

All randomness is a function of epoch and step: the caller's batches, and what the network itself draws (dropout). So a run
that goes on from a checkpoint ends with the same bits as one that was never stopped.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from delt.config import RuntimeConfig
from delt.data.images import Images, normalise
from delt.errors import DeltError, Stopped
from delt.runtime import Replay, in_training, seeded
from delt.storage import Slots
from delt.team import Given, Team

TEST_BATCH = 500
GPU_TEST_BATCH = 2000
LOOK = 1.0  # seconds of passes whose losses are not read from a GPU, since it would be waited for


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
    team: Team | None = None,
) -> list[dict[str, Any]]:
    """Train `model` in place and return one record per epoch.

    Args:
        batches: `batches(epoch)` yields the tensors that each step needs, on the model's device; always the same for an
            epoch, since a run that goes on passes over those that it has done. It may raise `Stopped`.
        loss: of one step, from these tensors alone.
        rate: learning rate after a number of passes (fractions count), set before each step.
        steps: steps per epoch.
        after: called after each epoch; what it returns joins the epoch's record.
        seed: of dropout and the like.
        slots: where checkpoints go, at most one in `every` seconds and one where it is stopped; training goes on from the
            newest.
        graphs: record the step as a CUDA graph. The loss must then be the same work on the same tensors each time.
        team: the ranks that train together; all of them call this. The loss must be a mean over the images of a batch.

    Raises:
        Stopped: `batches` raised it; a checkpoint is written.
        DeltError: a loss or gradient is not finite; names epoch, step and the parameter. That step is not taken, and the
            checkpoint before stands. A GPU is asked at checkpoints, with what `after` returns, and after passes, at most once a
            second; until then it goes on.
    """
    team, device = team or Team(), next(model.parameters()).device
    step = Step(model, optimizer, loss, Replay(graphs and team.world is None), team)
    seldom = device.type != "cpu" and team.world is None  # ranks look at the same steps
    book = Book(Keeper(model, optimizer, slots, every, team.leads), step, seldom)
    random = draws(model)
    for epoch in range(len(book.records), epochs):
        with seeded(device, seed, "fit", epoch) if random else nullcontext(_nothing) as again:
            model.train()
            try:
                for given in itertools.islice(batches(epoch), book.steps, None):
                    again(book.steps)
                    set_rate(optimizer, rate(epoch + book.steps / steps))
                    book.add(step(given))
                    if step.stopped:
                        raise step.stopped
            except Stopped:
                book.save()
                raise
        book.turn(after(epoch) if after else {})
    book.look()
    return book.records


def draws(model: nn.Module) -> bool:
    """Whether a network draws random numbers in training; torchvision's layer goes by its name, since loading torchvision takes long."""
    return any(isinstance(layer, nn.modules.dropout._DropoutNd) or type(layer).__name__ == "StochasticDepth" for layer in model.modules())


def _nothing(*key: object) -> None:
    """Stands for seeding where nothing is drawn."""


class Book:
    """What a training notes: a record per pass, and the losses of the one in work, with checkpoints of both.

    A loss is looked at before it is kept. A CPU's are looked at after each step, a GPU's seldom, since it would be waited for.
    """

    def __init__(self, keeper: Keeper, step: Step, seldom: bool) -> None:
        self.keeper, self.step, self.seldom = keeper, step, seldom
        self.records, losses = keeper.resume()
        self.passes = [Pass(len(self.records), losses)]  # that have no record yet: the last is in work
        self.looked = time.monotonic()

    @property
    def steps(self) -> int:
        """Steps of the pass in work."""
        return len(self.passes[-1].losses)

    def add(self, loss: Tensor) -> None:
        """A step was taken."""
        self.passes[-1].losses.append(loss)
        if self.keeper.due:
            self.save()
        elif not self.seldom:
            self.look()

    def turn(self, more: dict[str, Any]) -> None:
        """A pass is over; `more` joins its record."""
        self.passes[-1].more = more
        self.passes.append(Pass(self.passes[-1].number + 1, []))
        if self.keeper.due:
            self.save()
        elif more or not self.seldom or time.monotonic() - self.looked > LOOK:
            self.look()

    def look(self) -> None:
        """Read the losses that came since the last look, and record the passes that are over.

        Raises:
            DeltError: one is not finite.
        """
        for one in self.passes:
            bad = one.check()
            if bad is not None:
                raise DeltError(
                    f"training stopped: {self.step.culprit()} is not finite at step {bad} of epoch {one.number}; that step was not taken, "
                    "and the checkpoint before it stands: lower the learning rate"
                )
        self.records.extend(one.record() for one in self.passes[:-1])
        del self.passes[:-1]
        self.looked = time.monotonic()

    def save(self) -> None:
        """Write a checkpoint, where they are kept."""
        self.look()
        self.keeper.save(self.records, self.passes[-1].losses)


@dataclass
class Pass:
    """The losses of a pass so far."""

    number: int
    losses: list[Tensor]
    more: dict[str, Any] = field(default_factory=dict)  # what else is to be recorded
    checked: int = 0

    def check(self) -> int | None:
        """Read the losses that are new, all at once; returns the first step whose loss is not finite."""
        new, start = self.losses[self.checked :], self.checked
        self.checked = len(self.losses)
        values = torch.stack(new).tolist() if new else []
        return next((step for step, value in enumerate(values, start) if not math.isfinite(value)), None)

    def record(self) -> dict[str, Any]:
        return {"epoch": self.number, "loss": round(torch.stack(self.losses).mean().item(), 6), **self.more}


class Step:
    """One step of an optimizer, which can be recorded: it reads its tensors from where the first batch's were put.

    A batch of another shape, as the last of a pass may be, is done plainly. Where the loss or a gradient is not finite, the
    loss that it returns is not either, and no parameter moves.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: Callable[..., Tensor],
        replay: Replay,
        team: Team | None = None,
    ) -> None:
        self.model, self.optimizer, self.loss, self.replay, self.team = model, optimizer, loss, replay, team or Team()
        self.fused = all(group.get("fused") for group in optimizer.param_groups)  # such a one can be told on the device not to step
        self.still: Given = ()
        self.raw: Tensor | None = None  # the newest loss
        self.stopped: Stopped | None = None  # where a rank was told to stop

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
        own, weight = self.team.share(given)
        with self.team.explained(), self.team.measuring():
            loss = self.loss(*own) * weight if self.team.world else self.loss(*own)
            loss.backward()
            self.raw, self.stopped = self.team.settle(loss.detach())
        norm = get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        seen = self.raw + 0 * norm.to(self.raw.dtype)  # the loss, or NaN
        if self.fused:
            self.optimizer.found_inf = seen.isfinite().logical_not().float()  # type: ignore[attr-defined]
            self.optimizer.step()
        elif math.isfinite(seen.item()):
            self.optimizer.step()
        return seen

    def culprit(self) -> str:
        """What is not finite in the newest step."""
        named = ((name, p.grad) for name, p in self.model.named_parameters() if p.grad is not None)
        bad = [name for name, grad in named if not torch.isfinite(grad).all()]
        if self.raw is not None and not torch.isfinite(self.raw):
            return "the loss"
        return f"the gradient of {bad[0]}" if bad else "the loss or a gradient"


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


@dataclass
class Keeper:
    """The checkpoints of a training: network, optimizer, the records of whole epochs and the losses of the one in work."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    slots: Slots | None
    every: float  # seconds
    leads: bool = True  # whether this rank writes them
    saved: float = field(default_factory=time.monotonic)

    @property
    def due(self) -> bool:
        return self.slots is not None and self.leads and time.monotonic() - self.saved > self.every

    def save(self, history: list[dict[str, Any]], losses: list[Tensor]) -> None:
        """Write a checkpoint, where they are kept."""
        if self.slots is None or not self.leads:
            return
        tensors = {f"model/{name}": value for name, value in self.model.state_dict().items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{name}": value for name, value in values.items()}
        tensors["losses"] = torch.stack(losses) if losses else torch.zeros(0)
        self.slots.save(tensors, {"history": history})
        self.saved = time.monotonic()

    def resume(self) -> tuple[list[dict[str, Any]], list[Tensor]]:
        """Load the newest checkpoint, if there is one: the records of the epochs that it holds, and the losses of the next."""
        if self.slots is None or (saved := self.slots.load()) is None:
            return [], []
        tensors, meta = saved
        losses = list(tensors.pop("losses").to(next(self.model.parameters()).device))
        self.model.load_state_dict({name[6:]: value for name, value in tensors.items() if name.startswith("model/")})
        state: dict[int, dict[str, Tensor]] = {}
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        for name, value in tensors.items():
            kind, index, *key = name.split("/")
            if kind == "optimizer":
                alike = parameters[int(index)]  # also in layout: otherwise the last bits of a step are others
                value = torch.empty_like(alike).copy_(value) if value.shape == alike.shape else value
                state.setdefault(int(index), {})[key[0]] = value
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        history: list[dict[str, Any]] = meta["history"]
        return history, losses


@torch.no_grad()
def accuracy(
    model: nn.Module,
    images: Images,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    device: torch.device,
    runtime: RuntimeConfig | None = None,
    team: Team | None = None,
) -> float:
    """Top-1 accuracy in % of a network, in eval mode, on labelled images; in training's arithmetic where a runtime is given.

    Each rank of a team looks at its share of the images, and all have the result.
    """
    model.eval()
    team = team or Team()
    right = torch.zeros((), dtype=torch.long, device=device)
    batch = TEST_BATCH if device.type == "cpu" else GPU_TEST_BATCH
    with in_training(runtime) if runtime else nullcontext():
        for pixels, labels in images.batches(team.own(torch.arange(len(images))), batch):
            logits = model(normalise(pixels.to(device), mean, std))
            right += (logits.argmax(1) == labels.to(device)).sum()
    return 100 * int(team.sum(right)) / len(images)
