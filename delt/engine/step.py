"""One iteration of recover: augment the active images, measure the loss, take Adam's step, clamp to valid pixels.

    loss = cross-entropy + bn_weight * sum over BatchNorm layers |var - running_var| + |mean - running_mean|

All groups of a pack pass together, as far as the memory goes (`Split`); only active images are in the graph. What an
iteration needs from the CPU (crops, step sizes) is computed for many iterations at once, a `Span`, and sent ahead, so
that nothing waits for a GPU between two joins, and its work is the same from one iteration to the next: it is recorded
once per round as a CUDA graph and replayed.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from delt import storage
from delt.artifacts.snapshots import Frame
from delt.artifacts.teacher import Teacher
from delt.data.augment import taps, warp
from delt.data.images import denormalise
from delt.densification import densification
from delt.engine.draws import BLOCK, Draws, Operators, Warped
from delt.engine.memory import Split
from delt.engine.pack import PackTask, Unit
from delt.engine.pixels import kept_pixels, resized, small_side, starting_images
from delt.errors import DeltError
from delt.models.fused import fuse, regular_stem
from delt.models.statistics import StatisticsMatch, patch_side
from delt.runtime import HALVES, Emit, Replay, given_to, is_out_of_memory, lowered, send, silent, stream
from delt.schedule import learning_rate

EPS = 1e-8  # of Adam
LOSS_SCALE = 2.0**10  # in fp16, where the gradients of the statistics would vanish
SPAN_BYTES = 2**26  # of crops that are prepared at once


@dataclass
class State:
    """The optimisation at iteration t: normalised images [N,C,H,W], Adam's two moments, and the averages of statistics."""

    images: Tensor
    first: Tensor
    second: Tensor
    recorded: list[Tensor] = field(default_factory=list)  # uint8 [R,C,H,W], on the device until they are wanted
    readings: list[dict[str, Any]] = field(default_factory=list)
    past: dict[int, Tensor] = field(default_factory=dict)  # of each teacher that was asked
    t: int = 0

    def save(self, slots: storage.Slots) -> None:
        """Write a checkpoint; refuses values that are not finite, so that a good one is never replaced by a bad one."""
        if not torch.isfinite(self.images).all():
            raise DeltError(f"recover: pixels are not finite at iteration {self.t}; lower recover_lr")
        tensors = {"images": self.images, "first": self.first, "second": self.second}
        tensors |= {f"recorded/{s}": images for s, images in enumerate(self.recorded)}
        tensors |= {f"past/{turn}": value for turn, value in self.past.items()}
        slots.save(tensors, {"t": self.t, "readings": self.readings})

    def load(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        device = self.images.device
        self.images, self.first, self.second = (tensors[name].to(device) for name in ("images", "first", "second"))
        self.past = {int(name[5:]): value.to(device) for name, value in tensors.items() if name.startswith("past/")}
        self.recorded = [tensors[f"recorded/{s}"] for s in range(sum(name.startswith("recorded/") for name in tensors))]
        self.readings, self.t = meta["readings"], meta["t"]


@dataclass(frozen=True)
class Inputs:
    """What one iteration needs besides the images: crops for all groups, and Adam's factors for all active images."""

    rows: Tensor  # [K,G,H,H], K crops per group: one, or one per active sub-batch
    cols: Tensor  # [K,G,W,W]
    taps: Tensor  # [K,G,2,4,H], what `taps` finds in both; [K,G,0] where no kernel asks for it
    rate: Tensor  # step size, corrected for the first moment's start from zero: [1,1,1,1] or [N,1,1,1]
    widen: Tensor  # correction of the root of the second moment, likewise

    def tensors(self) -> tuple[Tensor, ...]:
        return self.rows, self.cols, self.taps, self.rate, self.widen


@dataclass(frozen=True)
class Span:
    """The inputs of iterations `start <= t < stop`, on the device, with a leading axis for the iterations."""

    start: int
    stop: int
    inputs: Inputs

    def at(self, t: int) -> Inputs:
        return Inputs(*(tensor[t - self.start] for tensor in self.inputs.tensors()))


class Step:
    """One iteration of a pack; statistics are measured inside its `with` block.

    Args:
        say: hears where memory ran out.
    """

    def __init__(self, task: PackTask, device: torch.device, say: Emit = silent) -> None:
        self.task, self.device, self.card, self.say = task, device, task.teacher.card, say
        self.config, self.schedule, self.runtime = task.config, task.schedule, task.job.runtime
        self.groups = len(task.groups)
        self.labels = torch.tensor([c for c, _ in task.members], device=device)
        self.depth = torch.tensor([k for k in self.schedule.sub_batch_of for _ in task.groups])
        self.place = torch.tensor(self.schedule.sub_batch_of, device=device)  # sub-batch of each image of a group
        self.watched = task.watched.to(device)
        shape = (1, self.card.channels, 1, 1)
        mean, std = torch.tensor(self.card.mean).view(shape), torch.tensor(self.card.std).view(shape)
        self.low, self.high = (-mean / std).to(device), ((1 - mean) / std).to(device)
        self.scale = LOSS_SCALE if self.runtime.precision == "fp16" else 1.0
        self.last: tuple[int, tuple[Tensor, Tensor]] | None = None  # the newest iteration and its losses
        self.watch = Finite(self.groups, device)
        self.start = starting_images(task).to(device)
        self.stages = [self.schedule.iterations * k // self.config.stages for k in range(self.config.stages)]  # their first iterations
        self.networks = [self.network(teacher.to(device)) for teacher in task.teachers]
        self.matches = [self.match(teacher, k) for k, teacher in enumerate(task.teachers)]
        self.hooks = ExitStack()
        self.classmates: dict[tuple[int, int], list[Tensor]] = {}  # see `densification`
        self.draws = Draws(task.job.seed, task.groups, self.schedule, self.config, self.side)
        self.span: Span | None = None
        self.split = Split(self.groups)
        self.compiled: set[tuple[int, int]] = set()  # teachers and image sizes
        self.forward = torch.compile(self._forward) if self.runtime.compile == "on" else self._forward
        alike = len(self.networks) == 1 and not (self.config.average or self.config.drop or self.config.densify)
        self.replay = Replay(self.runtime.graphs == "on" and alike)  # the same work from one iteration to the next
        plain = self.runtime.compile == "on" or self.config.densify  # which looks at them, too
        self.quick = self.device.type == "cuda" and self.runtime.memory_format == "channels_last" and not plain  # crops by a kernel
        self.still: Inputs | None = None  # what a recording reads
        self.noted: list[tuple[int, tuple[Tensor, Tensor]]] = []  # losses that are still on the device

    def __enter__(self) -> Step:
        for match in self.matches:
            self.hooks.enter_context(match)
        return self

    def __exit__(self, *error: object) -> None:
        self.hooks.close()
        self.replay.forget()

    def network(self, teacher: Teacher) -> nn.Module:
        """The teacher's network in the arithmetic and layout of this run, with what is quick on a GPU in its place."""
        network = lowered(teacher.model, self.runtime)
        if self.device.type == "cpu" or network is teacher.model:
            return network
        if self.config.match == "bn":  # where convolutions are measured, they stay
            network = regular_stem(network)
        return network if self.runtime.compile == "on" else fuse(network)

    def match(self, teacher: Teacher, turn: int) -> StatisticsMatch:
        """What measures the statistics of a teacher."""
        config = self.config
        return StatisticsMatch(
            self.networks[turn],
            self.groups,
            config.first_bn_multiplier,
            convolutions=teacher.convolutions if config.match == "bn+conv" else None,
            side=patch_side(self.card.size),
            average=config.average,
            from_zero=config.average_start == "zero",
        )

    def begin(self) -> State:
        """The state before the first iteration."""
        return State(self.start.clone(), torch.zeros_like(self.start), torch.zeros_like(self.start))

    def side(self, t: int) -> int:
        """Pixels per side of the images at iteration t: every other stage is small, the last is full."""
        size, left = self.card.size, len(self.stages) - bisect(self.stages, t)
        return small_side(size, self.config) if left % 2 else size

    def enter_stage(self, state: State) -> None:
        """Where a stage begins: resize the images, blend those in work with their start, and forget Adam's moments (FADRM)."""
        t = state.t
        if len(self.stages) == 1 or t not in self.stages:
            return
        start, images = resized(self.start, self.side(t)), resized(state.images.detach(), self.side(t))
        count = self.active(t - 1) if t else 0
        state.images = torch.cat([images[:count].lerp(start[:count], self.config.residual), start[count:]])
        state.first, state.second = torch.zeros_like(state.images), torch.zeros_like(state.images)
        self.replay.forget()

    def active(self, t: int) -> int:
        """Images that are optimised at iteration t, over all groups of the pack."""
        return self.groups * sum(self.schedule.sizes[: self.schedule.active(t)])

    def __call__(self, state: State) -> tuple[Tensor, Tensor]:
        """Take step `state.t`; return cross-entropy per image [N] and statistics distance per group [G].

        Where the memory does not suffice, the step is taken again in smaller parts, and so are all that follow.

        Raises:
            DeltError: it does not suffice for one image.
        """
        while True:
            try:
                self.watch.begin(state.t)
                losses = self._step(state)
                break
            except NotFinite as error:
                raise self.refused(error) from None
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            self._split(self.active(state.t) // self.groups)  # nothing was changed: the images move after the last pass
        self.last = state.t, losses
        return losses

    def refused(self, error: NotFinite) -> DeltError:
        """What a person is told of values that are not finite."""
        return DeltError(
            f"recover: {error.term} of group {self.task.groups[error.group].key} is not finite at iteration {error.t}; nothing was "
            "stepped, and the checkpoint before it stands: lower recover_lr or recover_bn_weight, or choose --precision fp32"
        )

    def _split(self, images: int) -> None:
        smaller = self.split.smaller(images)
        if smaller is None:
            raise DeltError("recover: there is no memory for a single image on this device; choose another --device, or --precision")
        self.replay.forget()
        self.still = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.say({"message": f"out of memory with {self.split}: going on with {smaller}"})
        self.split = smaller

    def _step(self, state: State) -> tuple[Tensor, Tensor]:
        t, count = state.t, self.active(state.t)
        inputs = self.inputs(t)
        if not self.replay.on:
            return self._iterate(state, inputs, t, count)
        key = (count, self.split, *(tensor.shape for tensor in inputs.tensors()))
        if self.still is None or key != self.replay.key:
            self.still = Inputs(*(torch.empty_like(tensor) for tensor in inputs.tensors()))
        still = self.still
        torch._foreach_copy_(still.tensors(), inputs.tensors())
        return self.replay(key, lambda: self._iterate(state, still, t, count))

    def _iterate(self, state: State, inputs: Inputs, t: int, count: int) -> tuple[Tensor, Tensor]:
        gradient, entropy, distance = self.gradient(state, inputs, t, count)
        with torch.no_grad():
            inputs = self.watch(gradient, entropy, distance, inputs)
            self.adam(state, gradient, inputs, count)
        return entropy, distance

    # ------------------------------------------------------------------------------------------ prepared ahead

    def inputs(self, t: int) -> Inputs:
        """Those of iteration t; prepared for all that follow and are alike, as far as SPAN_BYTES go."""
        if self.span is None or not self.span.start <= t < self.span.stop:
            self.span = None  # its memory is needed
            self.span = self._prepared(t)
        return self.span.at(t)

    def _prepared(self, t: int) -> Span:
        ends = (t // BLOCK + 1) * BLOCK, *self.schedule.joins, *self.stages, self.schedule.iterations
        clocks, side = len(self.draws.clocks(t)), self.side(t)
        most = max(1, SPAN_BYTES // (clocks * self.groups * 8 * side * side))
        stop = min(t + most, min(end for end in ends if end > t))
        rows, cols = self.draws.crops(t, stop).operators(self.device)
        held = torch.stack([taps(rows), taps(cols)], -3) if self.quick else rows.new_empty(*rows.shape[:3], 0)
        dtype = self.start.dtype
        rate, widen = (send(part.to(dtype), self.device) for part in self.factors(t, stop))
        return Span(t, stop, Inputs(rows.to(dtype), cols.to(dtype), held.to(dtype), rate, widen))  # one dtype: one kernel copies them

    def factors(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Adam's two factors for iterations with the same active images, float64 [T,1,1,1,1] or [T,N,1,1,1].

        A sub-batch's step count starts when it joins, and with each stage.
        """
        config, count = self.config, self.active(start)
        times = torch.arange(start, stop, dtype=torch.float64)[:, None]
        begun = self.stages[bisect(self.stages, start) - 1]
        depth = self.depth[:count] if config.adam_steps == "sub_batch" or config.clock == "own" else self.depth[:1]
        joins = torch.tensor(self.schedule.joins)[depth] if config.adam_steps == "sub_batch" else torch.zeros(len(depth))
        steps = times + 1 - joins.clamp_min(begun)
        planned = [[learning_rate(*clock, config.lr) for clock in self.draws.clocks(t)] for t in range(start, stop)]
        rates = torch.tensor(planned, dtype=torch.float64)
        rates = (rates if rates.shape[1] == 1 else rates[:, depth]) / (1 - config.beta1**steps)
        widen = (1 - config.beta2**steps) ** -0.5
        return rates[..., None, None, None], widen[..., None, None, None]

    # ------------------------------------------------------------------------------------------ loss and gradient

    def gradient(self, state: State, inputs: Inputs, t: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient [N,C,H,W] of the loss, cross-entropy per image [N] and statistics distance per group [G]."""
        turn = t % len(self.networks)
        dropped, past = self.dropped(self.matches[turn], t), state.past.get(turn)
        images = state.images[:count].detach()
        parts = []
        for groups in self.split.slices(self.groups):
            own = Part(
                self._of(images, groups),
                self._of(self.labels[:count], groups),
                (inputs.rows[:, groups], inputs.cols[:, groups], inputs.taps[:, groups]),
                None if dropped is None else dropped[groups],
                None if past is None else past[groups],
            )
            size = self.split.images
            parts.append(self._whole(turn, own) if size is None else self._in_chunks(turn, own, size))
        if parts[0].past is not None:
            state.past[turn] = torch.cat([part.past for part in parts if part.past is not None])
        if len(parts) == 1:
            return parts[0].gradient, parts[0].entropy, parts[0].distance
        gradient, entropy = (self._joined([getattr(part, name) for part in parts]) for name in ("gradient", "entropy"))
        return gradient, entropy, torch.cat([part.distance for part in parts])

    def _of(self, rows: Tensor, groups: slice) -> Tensor:
        """The rows of some groups of the pack."""
        return rows.unflatten(0, (-1, self.groups))[:, groups].flatten(0, 1)

    def _joined(self, parts: Sequence[Tensor]) -> Tensor:
        """The rows of all groups, from those of `Split.slices`."""
        sizes = [groups.stop - groups.start for groups in self.split.slices(self.groups)]
        return torch.cat([part.unflatten(0, (-1, size)) for part, size in zip(parts, sizes, strict=True)], 1).flatten(0, 1)

    def _whole(self, turn: int, part: Part) -> Pulled:
        """All images of some groups in one pass."""
        match, images, groups = self.matches[turn], part.images.requires_grad_(), part.operators[0].shape[1]
        match.groups, match.past = groups, part.past
        place = self.place[: len(images) // groups]
        if self.runtime.compile == "on":
            self._prepare_to_compile(turn, images, part.labels, place)
        entropy, measured, views = self.forward(turn, images, part.labels, part.operators, place)
        distance = match.distance(measured, len(place), part.dropped)
        terms = [(entropy, 1 / len(place)), (distance, self.config.bn_weight)]
        if self.config.densify:
            terms.append((self.densification(views, part.labels, groups), self.config.densify))
        pulls = [torch.full_like(term, weight * self.scale) for term, weight in terms]  # their sum, without adding it up
        (gradient,) = torch.autograd.grad([term for term, _ in terms], images, pulls)
        return Pulled(self._unscaled(gradient), entropy.detach(), distance.detach(), match.past)

    def _prepare_to_compile(self, turn: int, images: Tensor, *more: Tensor) -> None:
        """Look once at how the network's statistics lie end to end, which cannot be compiled, and let one program serve all batch sizes."""
        if (turn, images.shape[-1]) not in self.compiled:
            self.compiled.add((turn, images.shape[-1]))
            with torch.no_grad():
                self.networks[turn](given_to(images[: self.matches[turn].groups], self.runtime))
            self.matches[turn].measured()
        for tensor in (images, *more):
            torch._dynamo.maybe_mark_dynamic(tensor, 0)

    def _forward(self, turn: int, images: Tensor, labels: Tensor, operators: Operators, place: Tensor) -> tuple[Tensor, ...]:
        """Cross-entropy per image, statistics [G, 2S], and what the teacher saw."""
        views = self.augment(images, operators, place)
        logits = self.networks[turn](given_to(views, self.runtime))
        found = self.matches[turn].measured()
        wide = logits if logits.dtype == torch.float64 else logits.float()
        return F.cross_entropy(wide, labels, reduction="none"), found.values, views

    def _in_chunks(self, turn: int, part: Part, size: int) -> Pulled:
        """One group, `size` images at a time, exactly: a first pass sums up the statistics, whose gradient a second one follows.

        The gradient of the statistics with respect to a layer's input is a straight line in it (see `Moments`), whose two
        coefficients per channel are known after the first pass.
        """
        match = self.matches[turn]
        match.groups, match.past = 1, part.past
        chunks = torch.arange(len(part.images), device=self.device).split(size)

        def views(rows: Tensor, images: Tensor) -> Tensor:
            return self.augment(images, part.operators, self.place[rows])

        with torch.no_grad():
            sums = None
            for rows in chunks:
                self.networks[turn](given_to(views(rows, part.images[rows]), self.runtime))
                found = match.measured()
                sums = found if sums is None else sums.with_more(found)
        assert sums is not None
        measured = sums.values.requires_grad_()
        distance = match.distance(measured, sums.images, part.dropped)
        (line,) = torch.autograd.grad(distance, measured, torch.full_like(distance, self.config.bn_weight * self.scale))
        gradients, entropies = [], []
        for rows in chunks:
            images = part.images[rows].requires_grad_()
            logits = self.networks[turn](given_to(views(rows, images), self.runtime))
            found = match.measured()
            entropy = F.cross_entropy(logits if logits.dtype == torch.float64 else logits.float(), part.labels[rows], reduction="none")
            pulls = [torch.full_like(entropy, self.scale / len(part.images)), line]
            gradients.append(torch.autograd.grad([entropy, found.values], images, pulls)[0])
            entropies.append(entropy.detach())
        gradient = torch.cat(gradients)
        if self.config.densify:
            images = part.images.requires_grad_()
            seen = self.augment(images, part.operators, self.place[: len(images)])
            value = self.config.densify * self.densification(seen, part.labels, 1)
            gradient = gradient + torch.autograd.grad(value, images, torch.full_like(value, self.scale))[0]
        return Pulled(self._unscaled(gradient), torch.cat(entropies), distance.detach(), match.past)

    def _unscaled(self, gradient: Tensor) -> Tensor:
        return gradient.mul_(1 / LOSS_SCALE) if self.runtime.precision == "fp16" else gradient

    def augment(self, images: Tensor, operators: Operators, place: Tensor) -> Tensor:
        """Crop, mirror and shift: one draw per group and iteration (per sub-batch, `place` [n], where each has its own clock).

        Where a kernel does it, they come as the network takes them.
        """
        rows, cols, _ = operators
        own = self.config.clock == "own"
        if self.quick and images.dtype == torch.float32:
            found: Tensor = Warped.apply(images, operators, place if own else None, HALVES.get(self.runtime.precision, images.dtype))
            return found
        if own:
            rows, cols = rows[place], cols[place]
        return warp(images.unflatten(0, (-1, rows.shape[1])), rows, cols).flatten(0, 1)

    def dropped(self, match: StatisticsMatch, t: int) -> Tensor | None:
        """Which convolutions each group leaves out at iteration t, bool [G, convolutions]; None where that is never done."""
        if not self.config.drop:
            return None
        streams = [stream(self.task.job.seed, "drop", group.key, t) for group in self.task.groups]
        return torch.stack([torch.rand(len(match.convolutions), generator=draws) < self.config.drop for draws in streams])

    def densification(self, views: Tensor, labels: Tensor, groups: int) -> Tensor:
        """Data densification of the active images of some groups, summed over them and their classes."""
        key = len(views), groups
        if groups != self.groups or key not in self.classmates:  # else they are always the same
            classes: dict[tuple[int, int], list[int]] = {}
            for row, label in enumerate(labels.tolist()):
                classes.setdefault((row % groups, label), []).append(row)
            alike: dict[int, list[list[int]]] = {}
            for rows in classes.values():
                alike.setdefault(len(rows), []).append(rows)
            self.classmates[key] = [torch.tensor(rows, device=self.device) for rows in alike.values()]
        return torch.stack([densification(views, rows).sum() for rows in self.classmates[key]]).sum()

    def adam(self, state: State, gradient: Tensor, inputs: Inputs, count: int) -> None:
        """Adam without weight decay on the first `count` images, clamped to valid pixels; `gradient` is used up.

        A kernel of one pass on a GPU; elsewhere seven passes over memory that is there: nothing can run out of it half way.
        """
        config = self.config
        images, first, second = state.images.detach()[:count], state.first[:count], state.second[:count]
        if step_suits(images, gradient):
            from delt.models import kernels

            factors, bounds, betas = (inputs.rate, inputs.widen), (self.low, self.high), (config.beta1, config.beta2)
            kernels.adam(images, (first, second), gradient, factors, bounds, betas, EPS, self.watch.well)
            return
        if self.watch.deferred:
            gradient.masked_fill_(~self.watch.well, 0)
        first.lerp_(gradient, 1 - config.beta1)
        second.mul_(config.beta2).addcmul_(gradient, gradient, value=1 - config.beta2)
        torch.sqrt(second, out=gradient).mul_(inputs.widen).add_(EPS)
        torch.div(first, gradient, out=gradient)
        torch.clamp(images.addcmul_(gradient, inputs.rate, value=-1), self.low, self.high, out=images)

    # ------------------------------------------------------------------------------------------ what is seen of it

    def watched_pixels(self, state: State) -> Tensor:
        """The recorded images as they are now, uint8 [R,C,H,W] on the device."""
        images = resized(state.images.detach()[self.watched], self.card.size)
        return denormalise(images, self.card.mean, self.card.std)

    def note(self, t: int, losses: tuple[Tensor, Tensor]) -> None:
        """Keep the losses of an iteration for `settle`: reading a number would wait for a GPU."""
        entropy, distance = losses
        self.noted.append((t, (entropy.clone(), distance.clone())))

    def settle(self, state: State) -> None:
        """Read what was noted, and look whether all was finite.

        Raises:
            DeltError: it was not; names term, group and iteration.
        """
        try:
            self.watch.check()
        except NotFinite as error:
            raise self.refused(error) from None
        for noted in self.noted:
            state.readings.extend(self.readings(*noted))
        self.noted.clear()

    def frame(self, state: State) -> Frame:
        """What a listener that watches gets to see."""
        depth, rows = self.depth.tolist(), self.task.watched.tolist()
        labels = tuple(self.task.members[row][0] for row in rows)
        images = self.watched_pixels(state).cpu().numpy()
        active = self.active(self.last[0]) if self.last else 0
        readings = list(self.readings(*self.last)) if self.last else []
        return Frame(state.t, self.task.iterations, images, labels, tuple(depth[row] for row in rows), active, len(depth), readings)

    def finish(self, state: State) -> Unit:
        """The images as they are in the pixels that are kept."""
        self.settle(state)
        images = kept_pixels(resized(state.images.detach(), self.card.size), self.card.mean, self.card.std, self.config.save)
        recorded = [*(shot.cpu() for shot in state.recorded), images[self.task.watched]]
        return Unit(images, torch.stack(recorded), state.t, state.readings)

    def readings(self, t: int, losses: tuple[Tensor, Tensor]) -> Iterator[dict[str, Any]]:
        """Loss terms at iteration t, one row per group; cross-entropy per sub-batch (None: it is empty), statistics are joint."""
        entropy, distance = (part.cpu() for part in losses)
        sizes = self.schedule.sizes[: self.schedule.active(t)]
        for g, group in enumerate(self.task.groups):
            own = entropy.unflatten(0, (-1, self.groups))[:, g]
            per_sub_batch = [round(part.mean().item(), 6) if len(part) else None for part in own.split(sizes)]
            bn = round(distance[g].item(), 6)
            yield {"stage": "recover", "group": group.key, "iteration": t, "cross_entropy": per_sub_batch, "bn": bn}


def step_suits(images: Tensor, gradient: Tensor) -> bool:
    """Whether `kernels.adam` can take these tensors [N,C,H,W]."""
    return images.is_cuda and images.dtype == torch.float32 and images.is_contiguous() and gradient.is_contiguous()


class NotFinite(Exception):
    """A value of an iteration is NaN or infinite."""

    def __init__(self, term: str, group: int, t: int) -> None:
        super().__init__(f"{term} of group {group} at iteration {t}")
        self.term, self.group, self.t = term, group, t


class Finite:
    """Keeps values that are not finite out of the images.

    On a CPU an iteration is refused before its step. A GPU is not waited for: there, from the first such iteration on no
    image moves, and `check` says later which one it was.
    """

    TERMS = ("the cross-entropy", "the statistics term", "the gradient")

    def __init__(self, groups: int, device: torch.device, deferred: bool | None = None) -> None:
        self.groups = groups
        self.deferred = device.type != "cpu" if deferred is None else deferred
        self.t = 0
        self.iterations: list[int] = []  # since the last check
        self.well = torch.ones((), dtype=torch.bool, device=device)
        self.lived = torch.zeros((), dtype=torch.long, device=device)  # iterations that were well
        self.found = torch.zeros(len(self.TERMS), groups, device=device)  # of the first iteration that was not, or the newest

    def begin(self, t: int) -> None:
        """Iteration t follows; where it is taken again, it counts once."""
        if self.deferred and self.iterations[-1:] != [t]:
            self.iterations.append(t)
        self.t = t

    def __call__(self, gradient: Tensor, entropy: Tensor, distance: Tensor, inputs: Inputs) -> Inputs:
        """Look at an iteration before its step, and return the inputs of the step: with a rate of zero where none may be taken.

        Raises:
            NotFinite: on a CPU.
        """
        if not self.deferred:
            total = entropy.sum() + distance.sum() + gradient.sum()
            if not math.isfinite(total.item()):
                self._refuse(self._terms(gradient, entropy, distance), self.t)
            return inputs
        found = self._terms(gradient, entropy, distance)
        torch.where(self.well, found.to(self.found.dtype), self.found, out=self.found)
        self.well.logical_and_(torch.linalg.vector_norm(found, math.inf) < math.inf)
        self.lived.add_(self.well)
        return replace(inputs, rate=inputs.rate * self.well)

    def check(self) -> None:
        """Look at all iterations since the last check.

        Raises:
            NotFinite: one was not; the images are as they were before it.
        """
        if self.iterations and not self.well.item():
            self._refuse(self.found, self.iterations[int(self.lived)])
        self.iterations.clear()
        self.lived.zero_()

    def _terms(self, gradient: Tensor, entropy: Tensor, distance: Tensor) -> Tensor:
        """Sums by term and group [3,G], finite where all values are."""
        rows = entropy.unflatten(0, (-1, self.groups)).sum(0), distance, gradient.unflatten(0, (-1, self.groups)).sum((0, 2, 3, 4))
        return torch.stack([row.to(gradient.dtype) for row in rows])

    def _refuse(self, terms: Tensor, t: int) -> None:
        bad = terms.isfinite().logical_not().nonzero().tolist()
        term, group = bad[0] if bad else (len(self.TERMS) - 1, 0)  # a sum over all groups that became too large
        raise NotFinite(self.TERMS[term], group, t)


@dataclass
class Part:
    """Some groups of a pack in one iteration, interleaved."""

    images: Tensor  # [n*g,C,H,W]
    labels: Tensor
    operators: Operators
    dropped: Tensor | None  # bool [g, convolutions]
    past: Tensor | None  # [g, 2S]: moving averages


@dataclass
class Pulled:
    """What a part's passes gave."""

    gradient: Tensor
    entropy: Tensor  # [n*g]
    distance: Tensor  # [g]
    past: Tensor | None
