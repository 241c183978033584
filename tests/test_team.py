"""Two processes that train one network do what one does: the same losses, the same weights, and they stop together."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from delt import processes
from delt.data.images import TensorImages
from delt.data.views import parts_of
from delt.errors import RunError, Stopped
from delt.models.synced import SyncNorm, synced
from delt.models.zoo import build
from delt.storage import Slots
from delt.team import Given, Team
from delt.training import accuracy, fit, sgd
from delt.world import World

CPU = torch.device("cpu")
SIZES = (9, 8, 7, 3)  # of the batches: odd, even, too small to be shared in two parts, and in one
EPOCHS = 3


def batch(epoch: int, step: int) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(100 * epoch + step)
    return torch.randn(SIZES[step], 3, 8, 8, generator=draws), torch.randint(4, (SIZES[step],), generator=draws)


def trained(
    world: World | None, folder: Path | None = None, stop_at: int | None = None, parts: int = 1
) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """A small network's training: its records and its weights; the last rank is told to stop at a step."""
    team, seen = Team(world, parts), [0]
    model = team.synced(build("convnet3", 4, 3, 8, 8, 0), CPU)
    network = team.network(model, CPU)

    def listener(event: dict[str, Any]) -> None:
        seen[0] += 1
        if seen[0] == stop_at and team.rank == team.size - 1:
            raise Stopped("stopped by SIGTERM", exit_code=143)

    emit = team.calm(listener)

    def batches(epoch: int) -> Iterator[Given]:
        for step in range(len(SIZES)):
            yield batch(epoch, step)
            emit({"stage": "squeeze", "done": SIZES[step]})

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(torch.cat([network(part) for part in team.parts_of(images)]), labels)

    optimizer = sgd(model.parameters(), 0.1, CPU, momentum=0.9)
    slots = Slots(folder / "net") if folder else None
    history = fit(model, optimizer, EPOCHS, batches, loss, lambda epoch: 0.1 / (1 + epoch), len(SIZES), slots=slots, team=team)
    return history, {name: value.clone() for name, value in model.state_dict().items()}


def normed(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """What a layer makes of some images, its gradients under a loss that is a sum, and what it remembers."""
    images = images.clone().requires_grad_()
    out = model(images)
    weights = torch.linspace(-1, 1, out[0].numel()).view_as(out[0])
    (out.pow(3) * weights).sum().backward()
    assert images.grad is not None
    found = {"out": out.detach(), "images": images.grad}
    found |= {f"gradient of {name}": parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return found | dict(model.named_buffers())


def layer() -> nn.Module:
    model = nn.BatchNorm2d(3, momentum=0.3)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
        model.bias.copy_(torch.tensor([0.1, 0.0, -0.1]))
    return model.double()


def measured_alone(world: World | None) -> dict[str, Tensor]:
    """`normed` of three images of a pixel each, too few for two ranks."""
    team = Team(world)
    model = team.synced(layer(), CPU)
    (images,), weight = team.share((IMAGES[:3, :, :1, :1],))
    assert weight == 1
    with team.measuring():
        return normed(model, images)


IMAGES = torch.randn(7, 3, 4, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 3 + 1


def rank_of_two(rank: int, folder: Path) -> None:
    """What each of the two processes does."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    world = World(rank, 2, dist.FileStore(str(folder / "store"), 2))
    world.gather()
    team, results = Team(world), dict[str, Any]()
    results["norm"] = normed(synced(layer(), CPU), IMAGES[:3] if rank == 0 else IMAGES[3:])
    results["few"] = measured_alone(world)
    results["trained"] = trained(world)
    results["in parts"] = trained(world, parts=2)
    with pytest.raises(Stopped) as stop:
        trained(world, folder, stop_at=5)
    results["stopped"] = str(stop.value)
    dist.barrier()
    results["files"] = sorted(path.name for path in folder.glob("net*"))
    dist.barrier()
    results["went on"] = trained(world, folder)
    model = build("convnet3", 4, 3, 8, 8, 0)
    test = TensorImages(torch.arange(11 * 192).remainder(256).to(torch.uint8).view(11, 3, 8, 8), torch.arange(11) % 4)
    results["accuracy"] = accuracy(model, test, (0.5,) * 3, (0.2,) * 3, CPU, team=team)
    torch.save(results, folder / f"rank{rank}.pt")
    dist.barrier()
    if rank == 1:
        os._exit(9)
    try:
        trained(world)
    except RunError as error:
        (folder / "lost.txt").write_text(str(error))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("team")
    context = processes.context()
    ranks = [context.Process(target=rank_of_two, args=(rank, folder)) for rank in range(2)]  # type: ignore[attr-defined]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    assert [process.exitcode for process in ranks] == [0, 9]
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


def test_statistics_are_those_of_the_whole_batch(found: list[dict[str, Any]]):
    whole, parts = normed(layer(), IMAGES), [rank["norm"] for rank in found]
    for name in ("out", "images"):
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), whole[name])
    for name in ("gradient of weight", "gradient of bias"):
        torch.testing.assert_close(parts[0][name] + parts[1][name], whole[name])
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(parts[0][name], parts[1][name])
        torch.testing.assert_close(parts[0][name], whole[name])


def test_outside_training_a_synced_layer_is_a_plain_one():
    plain, other = layer().eval(), synced(layer(), CPU).eval()
    assert isinstance(other, SyncNorm) and torch.equal(other(IMAGES), plain(IMAGES))
    model = synced(build("convnet3", 4, 3, 8, 8, 0), CPU)
    assert list(model.state_dict()) == list(build("convnet3", 4, 3, 8, 8, 0).state_dict())


def test_what_every_rank_does_whole_is_measured_once(found: list[dict[str, Any]]):
    """Twice the same three images have the mean and variance of three, but their unbiased variance is another."""
    alone = measured_alone(None)
    for rank in found:
        assert list(rank["few"]) == list(alone)
        for name, value in alone.items():
            torch.testing.assert_close(rank["few"][name], value)


@pytest.mark.parametrize(("what", "parts"), [("trained", 1), ("in parts", 2)])
def test_two_processes_train_the_network_that_one_does(found: list[dict[str, Any]], what: str, parts: int):
    history, weights = trained(None, parts=parts)
    for rank in found:
        records, own = rank[what]
        assert [record["loss"] for record in records] == pytest.approx([record["loss"] for record in history], rel=1e-4)
        for name, value in weights.items():
            torch.testing.assert_close(own[name], value, rtol=1e-3, atol=1e-4)
    assert all(torch.equal(found[0][what][1][name], found[1][what][1][name]) for name in weights)


def test_all_stop_after_the_same_step_and_go_on_from_the_first_ones_checkpoint(found: list[dict[str, Any]]):
    assert [rank["stopped"] for rank in found] == ["stopped; the same command goes on where it was", "stopped by SIGTERM"]
    assert all(rank["files"] == ["net.a.ckpt"] for rank in found)
    for rank in found:
        assert rank["went on"][0] == rank["trained"][0]
        assert all(torch.equal(rank["went on"][1][name], value) for name, value in rank["trained"][1].items())


def test_every_rank_knows_the_accuracy_on_all_images(found: list[dict[str, Any]]):
    model = build("convnet3", 4, 3, 8, 8, 0)
    test = TensorImages(torch.arange(11 * 192).remainder(256).to(torch.uint8).view(11, 3, 8, 8), torch.arange(11) % 4)
    whole = accuracy(model, test, (0.5,) * 3, (0.2,) * 3, CPU)
    assert [rank["accuracy"] for rank in found] == [whole] * 2


def test_a_rank_that_is_lost_is_named(folder: Path):
    assert "another rank was lost (" in (folder / "lost.txt").read_text()


@pytest.mark.parametrize("count", [1, 3, 4, 5, 64])
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("parts", [1, 2, 5])
def test_shares_make_up_the_batch(count: int, size: int, parts: int):
    given = (torch.arange(count), torch.arange(2 * count).view(count, 2), torch.tensor(0.5))
    teams = [Team(World(rank, size, None) if size > 1 else None, parts) for rank in range(size)]
    shares, whole = [team.share(given) for team in teams], parts_of(given[0], parts)
    pieces = [team.parts_of(own[0]) for team, (own, _) in zip(teams, shares, strict=True)]
    if size > 1 and min(map(len, whole)) < 2 * size:
        assert all(share == (given, 1.0) for share in shares)
        assert all(torch.equal(torch.cat(own), given[0]) and list(map(len, own)) == list(map(len, whole)) for own in pieces)
        return
    assert all(torch.equal(own[1], given[1][own[0]]) and own[2] is given[2] for own, _ in shares)
    for part, *own in zip(whole, *pieces, strict=True):
        assert torch.equal(torch.cat(own), part), "all ranks together pass the part that one process does"
        assert min(map(len, own)) > 1 or size == 1
    assert sum(weight for _, weight in shares) == pytest.approx(size)
    mean = sum(own[0].float().mean().item() * weight for own, weight in shares) / size
    assert mean == pytest.approx(given[0].float().mean().item())


def test_errors_of_the_work_itself_stay_what_they_are():
    with pytest.raises(RuntimeError, match="^mat1 and mat2"), Team(World(0, 2, None)).explained():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="^gloo"), Team().explained():
        raise RuntimeError("gloo")
