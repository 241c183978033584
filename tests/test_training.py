"""The training loop: against a plain one, stopped and resumed, and with losses that are no numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from delt import training
from delt.data.images import TensorImages, normalise
from delt.errors import DeltError, Stopped
from delt.runtime import Replay, seeded, stream
from delt.storage import Slots
from delt.training import Given, Step, accuracy, adamw, fit, set_rate, sgd

STEPS, BATCH = 4, 6
OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adamw": lambda model: torch.optim.AdamW([{"params": [p]} for p in model.parameters()], 0.01, weight_decay=0.1),
}


def network(dropout: float = 0.0) -> nn.Module:
    with seeded(torch.device("cpu"), "network"):
        return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Dropout(dropout), nn.Linear(12, 2))


def batch(epoch: int, step: int) -> tuple[Tensor, Tensor]:
    generator = stream("batch", epoch, step)
    return torch.randn(BATCH, 1, 4, 4, generator=generator), torch.randint(2, (BATCH,), generator=generator)


def batches(epoch: int) -> Iterator[Given]:
    return (batch(epoch, step) for step in range(STEPS))


def stopping(stop: int) -> Callable[[int], Iterator[Given]]:
    def given(epoch: int) -> Iterator[Given]:
        for step in range(STEPS):
            if epoch == stop and step == 2:
                raise KeyboardInterrupt
            yield batch(epoch, step)

    return given


def loss_of(model: nn.Module) -> Callable[..., Tensor]:
    return lambda images, labels: F.cross_entropy(model(images), labels)


def rate(epoch: float) -> float:
    return 0.05 / (1 + epoch)


def bits(model: nn.Module) -> list[Tensor]:
    return [value.clone() for value in model.state_dict().values()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fit_is_the_plain_loop(name: str):
    model, plain = network(), network()
    history = fit(model, OPTIMIZERS[name](model), 3, batches, loss_of(model), rate, STEPS, after=lambda epoch: {"twice": 2 * epoch})
    optimizer, means = OPTIMIZERS[name](plain), []
    plain.train()
    for epoch in range(3):
        total = 0.0
        for step in range(STEPS):
            for group in optimizer.param_groups:
                group["lr"] = 0.05 / (1 + epoch + step / STEPS)
            images, labels = batch(epoch, step)
            loss = F.cross_entropy(plain(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() / STEPS
        means.append(total)
    assert same(bits(model), bits(plain))
    assert [record["loss"] for record in history] == pytest.approx(means, abs=2e-6)
    assert [(record["epoch"], record["twice"]) for record in history] == [(0, 0), (1, 2), (2, 4)]


@pytest.mark.parametrize("stop", [1, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_stopped_and_resumed_ends_with_the_same_bits(name: str, stop: int, tmp_path: Path):
    whole = network(dropout=0.5)
    expected = fit(whole, OPTIMIZERS[name](whole), 4, batches, loss_of(whole), rate, STEPS, seed=7)
    model = network(dropout=0.5)
    with pytest.raises(KeyboardInterrupt):
        fit(
            model,
            OPTIMIZERS[name](model),
            4,
            stopping(stop),
            loss_of(model),
            rate,
            STEPS,
            seed=7,
            slots=Slots(tmp_path / "fit"),
            every=-1.0,
        )
    torch.rand(11)  # whatever else happens in the process
    resumed, begun = network(dropout=0.5), list[int]()
    with torch.no_grad():
        for value in resumed.parameters():
            value.zero_()  # nothing of the start may matter

    def counted(epoch: int) -> Iterator[Given]:
        begun.append(epoch)
        return batches(epoch)

    history = fit(resumed, OPTIMIZERS[name](resumed), 4, counted, loss_of(resumed), rate, STEPS, seed=7, slots=Slots(tmp_path / "fit"))
    assert same(bits(resumed), bits(whole))
    assert history == expected and begun == list(range(stop, 4))


def test_dropout_follows_the_seed_and_nothing_global():
    def trained(seed: int) -> list[Tensor]:
        torch.rand(3)
        model = network(dropout=0.5)
        fit(model, OPTIMIZERS["sgd"](model), 2, batches, loss_of(model), rate, STEPS, seed=seed)
        return bits(model)

    first, before = trained(1), torch.get_rng_state()
    assert same(trained(1), first) and not same(trained(2), first)
    torch.set_rng_state(before)
    model = network(dropout=0.5)
    fit(model, OPTIMIZERS["sgd"](model), 1, batches, loss_of(model), rate, STEPS)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_checkpoint_before_its_time(tmp_path: Path):
    model = network()
    fit(model, OPTIMIZERS["sgd"](model), 2, batches, loss_of(model), rate, STEPS, slots=Slots(tmp_path / "fit"), every=1e6)
    assert list(tmp_path.iterdir()) == []


def test_every_epoch_has_draws_of_its_own():
    model, draws = network(), list[float]()

    def drawn(epoch: int) -> Iterator[Given]:
        draws.append(torch.rand(1).item())  # as dropout draws
        return batches(epoch)

    fit(model, OPTIMIZERS["sgd"](model), 3, drawn, loss_of(model), rate, STEPS)
    assert len(set(draws)) == 3


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_no_number_stops_and_is_not_saved(bad: float, tmp_path: Path):
    model, slots = network(), Slots(tmp_path / "fit")

    def spoiled(epoch: int) -> Iterator[Given]:
        for step, (images, labels) in enumerate(batches(epoch)):
            yield images, labels, torch.tensor(bad if (epoch, step) == (2, 1) else 0.0)

    def loss(images: Tensor, labels: Tensor, more: Tensor) -> Tensor:
        return loss_of(model)(images, labels) + more

    with pytest.raises(DeltError, match="the loss is not finite at step 1 of epoch 2; that step was not taken.*lower the learning rate"):
        fit(model, OPTIMIZERS["sgd"](model), 5, spoiled, loss, rate, STEPS, slots=slots, every=-1.0)
    saved: Any = slots.load()
    assert [record["epoch"] for record in saved[1]["history"]] == [0, 1] and len(saved[0]["losses"]) == 1
    assert all(value.isfinite().all() for value in saved[0].values())
    parameters = dict(model.named_parameters())
    assert all(torch.equal(saved[0][f"model/{name}"], value) for name, value in parameters.items())


class Spoil(torch.autograd.Function):
    """A loss that is fine, with a gradient that is not."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient * float("inf")


@pytest.mark.parametrize("make", [OPTIMIZERS["sgd"], lambda model: torch.optim.AdamW(model.parameters(), 0.01, fused=True)])
def test_a_gradient_that_is_no_number_moves_nothing(make: Callable[[nn.Module], torch.optim.Optimizer]):
    model = network()
    optimizer = make(model)
    step = Step(model, optimizer, lambda images, labels: Spoil.apply(loss_of(model)(images, labels)), Replay(False))
    plain = Step(model, optimizer, loss_of(model), Replay(False))
    assert torch.isfinite(plain(batch(0, 0)))
    before = [value.detach().clone() for value in model.parameters()]
    assert torch.isnan(step(batch(0, 1))) and same(before, [value.detach() for value in model.parameters()])
    assert step.culprit() == "the gradient of 0.weight"
    plain(batch(0, 2))
    assert not same(before, [value.detach() for value in model.parameters()])


@pytest.mark.parametrize("after", [0, 1, 3])
def test_where_it_is_stopped_it_goes_on_in_the_middle_of_an_epoch(after: int, tmp_path: Path):
    whole = network(dropout=0.5)
    expected = fit(whole, OPTIMIZERS["adamw"](whole), 3, batches, loss_of(whole), rate, STEPS, seed=7)
    steps: list[str] = []

    def stopping(epoch: int) -> Iterator[Given]:
        for step in range(STEPS):
            yield batch(epoch, step)
            if (epoch, step) == (1, after):
                raise Stopped

    def counted(model: nn.Module, name: str) -> Callable[..., Tensor]:
        return lambda *given: (steps.append(name), loss_of(model)(*given))[1]

    model, slots = network(dropout=0.5), Slots(tmp_path / "fit")
    with pytest.raises(Stopped):
        fit(model, OPTIMIZERS["adamw"](model), 3, stopping, counted(model, "a"), rate, STEPS, seed=7, slots=slots, every=1e6)
    torch.rand(5)
    model = network(dropout=0.5)
    found = fit(model, OPTIMIZERS["adamw"](model), 3, batches, counted(model, "b"), rate, STEPS, seed=7, slots=slots, every=1e6)
    assert found == expected and same(bits(model), bits(whole))
    assert steps == ["a"] * (STEPS + after + 1) + ["b"] * (2 * STEPS - after - 1)


class Seldom(training.Book):
    """As on a GPU, whose losses are not read after each step."""

    looks = 0

    def __init__(self, keeper: training.Keeper, step: Step, seldom: bool) -> None:
        super().__init__(keeper, step, True)

    def look(self) -> None:
        Seldom.looks += 1
        super().look()


@pytest.mark.parametrize(("every", "looks"), [(1e6, 1 + 2), (-1.0, 1 + 5 * STEPS + 5)])
def test_losses_that_are_read_seldom_are_the_same(every: float, looks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With the tests, at checkpoints and at the end."""

    def trained(name: str) -> tuple[list[dict[str, Any]], list[Tensor], Slots]:
        model, slots = network(0.5), Slots(tmp_path / name)
        tested = lambda epoch: {"top1": epoch} if epoch in (1, 3) else {}  # noqa: E731
        given = (5, batches, loss_of(model), rate, STEPS)
        return fit(model, OPTIMIZERS["adamw"](model), *given, after=tested, slots=slots, every=every), bits(model), slots

    plain, expected, kept = trained("plain")
    monkeypatch.setattr(training, "Book", Seldom)
    monkeypatch.setattr(training, "LOOK", 1e6)
    Seldom.looks = 0
    history, found, slots = trained("seldom")
    assert history == plain and same(found, expected) and Seldom.looks == looks
    if every < 0:
        one, other = slots.load(), kept.load()
        assert one and other and one[1] == other[1] == {"history": plain}
    monkeypatch.setattr(training, "LOOK", -1.0)
    Seldom.looks = 0
    assert trained("always")[0] == plain and Seldom.looks == max(looks, 1 + 5)


def test_a_loss_that_is_no_number_is_found_at_the_next_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(training, "Book", Seldom)
    monkeypatch.setattr(training, "LOOK", 1e6)
    model, slots = network(), Slots(tmp_path / "fit")

    def spoiled(epoch: int) -> Iterator[Given]:
        for step, (images, labels) in enumerate(batches(epoch)):
            yield images, labels, torch.tensor(float("nan") if (epoch, step) == (2, 1) else 0.0)
            if (epoch, step) == (4, 2):
                raise Stopped

    with pytest.raises(DeltError, match="not finite at step 1 of epoch 2; that step was not taken"):
        fit(
            model, OPTIMIZERS["sgd"](model), 9, spoiled, lambda a, b, more: loss_of(model)(a, b) + more, rate, STEPS, slots=slots, every=1e6
        )
    assert slots.load() is None  # a checkpoint is not written over what went wrong


def test_the_network_trains_after_it_was_tested():
    model, modes = network(), list[bool]()

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        modes.append(model.training)
        return loss_of(model)(images, labels)

    def after(epoch: int) -> dict[str, Any]:
        model.eval()
        return {}

    model.eval()
    fit(model, OPTIMIZERS["sgd"](model), 2, batches, loss, rate, STEPS, after=after)
    assert modes == [True] * 2 * STEPS


def test_accuracy_is_that_of_single_images_in_eval_mode():
    generator = stream("accuracy")
    pixels = torch.randint(256, (1103, 1, 4, 4), generator=generator, dtype=torch.uint8)
    labels = torch.randint(2, (1103,), generator=generator)
    model, mean, std = network(dropout=0.5), (0.4,), (0.2,)
    reference = copy.deepcopy(model).eval()
    with torch.no_grad():
        right = sum(int(reference(normalise(pixels[i : i + 1], mean, std)).argmax()) == int(labels[i]) for i in range(1103))
    assert accuracy(model, TensorImages(pixels, labels), mean, std, torch.device("cpu")) == pytest.approx(100 * right / 1103)
    assert same(bits(model), bits(reference))


# ---------------------------------------------------------------- steps that are recorded


class Recording(Replay):
    """Stands for a CUDA graph: every call must read the tensors of the first."""

    def __init__(self, on: bool) -> None:
        super().__init__(False)
        self.on, self.calls = on, 0

    def __call__(self, key: Any, body: Callable[[], Any]) -> Any:
        self.calls += 1
        return body()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_recorded_steps_read_the_same_tensors_and_give_the_same_bits(name: str, monkeypatch: pytest.MonkeyPatch):
    """A smaller last batch is done plainly, and the recording outlives it."""
    made: list[Recording] = []
    monkeypatch.setattr(training, "Replay", lambda on: made.append(Recording(on)) or made[-1])
    places: list[tuple[int, ...]] = []

    def uneven(epoch: int) -> Iterator[Given]:
        for step in range(STEPS):
            images, labels = batch(epoch, step)
            yield (images, labels) if step < STEPS - 1 else (images[:4], labels[:4])

    def watched(model: nn.Module) -> Callable[..., Tensor]:
        def loss(images: Tensor, labels: Tensor) -> Tensor:
            if len(images) == BATCH:
                places.append((images.data_ptr(), labels.data_ptr()))
            return loss_of(model)(images, labels)

        return loss

    plain, recorded = network(0.5), network(0.5)
    expected = fit(plain, OPTIMIZERS[name](plain), 3, uneven, loss_of(plain), rate, STEPS)
    assert fit(recorded, OPTIMIZERS[name](recorded), 3, uneven, watched(recorded), rate, STEPS, graphs=True) == expected
    assert same(bits(plain), bits(recorded)) and len(set(places)) == 1 and len(places) == 3 * (STEPS - 1) == made[1].calls


def test_a_rate_in_a_tensor_is_set_in_place():
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.1), capturable=False, foreach=False)
    place = optimizer.param_groups[0]["lr"]
    set_rate(optimizer, 0.25)
    assert optimizer.param_groups[0]["lr"] is place and place.item() == 0.25
    for make in (sgd, adamw):
        plain = make(model.parameters(), 0.1, torch.device("cpu"))
        set_rate(plain, 0.5)
        assert plain.param_groups[0]["lr"] == 0.5
    assert Step(model, optimizer, loss_of(model), Replay(False))(batch(0, 0)).ndim == 0
