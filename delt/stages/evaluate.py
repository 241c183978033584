"""Evaluate: train students from scratch on a small set and test them on real images.

The number that counts is the accuracy after the last epoch. The best epoch is chosen by the test set itself; it is kept
under its own name, for comparison with published values that were chosen so.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from delt import storage
from delt.artifacts.scores import Score
from delt.artifacts.soft_labels import SoftLabels
from delt.artifacts.synthetic import SyntheticSet
from delt.artifacts.teacher import TeacherCard, check_set
from delt.config import EvaluateConfig, RunConfig, RuntimeConfig
from delt.data.images import Images, RealSet, TensorImages
from delt.data.views import Batch, Views
from delt.errors import ConfigError, IntegrityError
from delt.job import Job
from delt.models.fused import fuse
from delt.models.zoo import SMALL, build, named, own_width
from delt.recipes import Recipe, recipe_of
from delt.runtime import (
    HALVES,
    Emit,
    for_training,
    free_memory,
    given_to,
    in_training,
    lowered,
    resolve,
    seed_of,
    settings,
    trainable,
    training_layout,
)
from delt.storage import Slots
from delt.team import Team
from delt.training import Given, accuracy, adamw, draws, fit, sgd
from delt.typed import typed

BESIDE = 6  # students that a GPU trains side by side, where images are small; more gave no more steps per second (benchmarks/LOG.md)
ROOM = 3 * 2**30  # bytes of free memory of a GPU for each of them
TOGETHER = 8  # images of a batch per rank from which on a student is trained by all ranks


@dataclass
class StudentTask:
    """One student to train; travels to a worker process."""

    score: Score  # its key; the results are filled in
    recipe: Recipe
    arch: str
    width: int | None
    batch: int
    train: Images
    test: Images
    soft: SoftLabels  # its teacher's card also holds the normalisation
    job: Job


@typed
def evaluate(
    synthetic: SyntheticSet,
    soft: SoftLabels,
    test: Images,
    config: EvaluateConfig,
    job: Job | None = None,
    *,
    name: str = "delt",
    known: Sequence[Score] = (),
) -> list[Score]:
    """Train the configured students on a synthetic set: every architecture, label kind and seed.

    Args:
        name: what the set is called in the scores.
        known: rows that exist already and are not computed again.

    Raises:
        TeacherError: the set is not of the teacher's classes and images.
        ConfigError: an unknown recipe or architecture, or stored labels that were made for another recipe or set.
    """
    job = job or Job()
    tasks = student_tasks(synthetic, soft, test, config, job, name=name)
    return run_students(tasks, job, known)


def student_tasks(
    synthetic: SyntheticSet, soft: SoftLabels, test: Images, config: EvaluateConfig, job: Job, *, name: str
) -> list[StudentTask]:
    """The students that `evaluate` trains, as values: several sets' students can share the workers."""
    card, ipc = soft.teacher.card, len(synthetic) // len(synthetic.classes)
    check_set(card, synthetic.classes, synthetic.images)
    recipe = recipe_of(config.recipe, card.dataset, card.size, ipc)
    if not synthetic.complete:
        warnings.warn(
            f"the synthesis of set {name!r} was stopped before its end: its students train on unfinished images", stacklevel=4
        )  # who called `evaluate`
    if "soft" in config.labels:
        soft.check(synthetic.images, synthetic.labels, recipe)
    if "soft" in config.labels and soft.logits is not None:
        require_one_batch(recipe, students_of(config, card.arch, card.width), len(synthetic.classes), ipc)
    images = TensorImages(synthetic.images, synthetic.labels)
    tasks = []
    for arch, width in students_of(config, card.arch, card.width):
        batch = recipe.batch(len(synthetic.classes), ipc, arch)
        epochs = epochs_of(config, recipe, arch, len(synthetic.classes), len(images))
        for labels in config.labels:
            for seed in range(job.seed, job.seed + config.seeds):
                score = Score(name, recipe.name, labels, shown(arch, width), seed, epochs, 0.0, 0.0)
                tasks.append(StudentTask(score, recipe, arch, width, batch, images, test, soft, job))
    return tasks


def full_tasks(real: RealSet, soft: SoftLabels, config: EvaluateConfig, job: Job) -> list[StudentTask]:
    """Students of the whole real set, unmixed and with its own labels: what there is to reach."""
    card = soft.teacher.card
    recipe = replace(recipe_of(config.recipe, card.dataset, card.size), mix="none", shuffle=1)
    tasks = []
    for arch, width in students_of(config, card.arch, card.width):
        for seed in range(config.seeds):  # the same for every run, so that the cache serves them all
            score = Score("full", recipe.name, "hard", shown(arch, width), seed, recipe.full_epochs, 0.0, 0.0)
            tasks.append(StudentTask(score, recipe, arch, width, recipe.full_batch, real.train, real.test, soft, job))
    return tasks


def run_students(tasks: list[StudentTask], job: Job, known: Sequence[Score] = ()) -> list[Score]:
    """Train what is not known yet, one student per worker at a time; rows come back in the order of the tasks."""
    rows = {row.key: row for row in known}
    missing = [task for task in tasks if task.score.key not in rows]
    job.emit({"stage": "evaluate", "total": sum(map(_images, missing)), "unit": "img"})
    whole, shared = _dealt(missing, job)
    for task in missing:
        task.job = Job(job.seed, job.runtime, job.work)  # the pool and the listener stay with this process
    beside = _beside(whole, job)
    if beside > 1:
        whole = _with_shared_teachers(whole, job.device)
    rows |= {row.key: row for row in job.each(train_student, whole, cost=_images, beside=beside)}
    for task in shared:
        task.job = replace(task.job, world=job.world)
        rows[task.score.key] = train_student(task, job.emit)
    return [rows[task.score.key] for task in tasks] if job.leads else []


def _images(task: StudentTask) -> int:
    """Images that a student sees in its training."""
    return len(task.train) * task.score.epochs


def _beside(tasks: list[StudentTask], job: Job) -> int:
    """How many students this process trains at a time, in threads: one on a CPU, or where there are workers; large images fill a GPU.

    Threads share the random state of their process, so a network that draws from it (dropout) is trained alone.
    """
    if job.device.type == "cpu" or (job.pool and job.pool.workers > 1) or len(tasks) < 2:
        return 1
    networks = {(task.arch, task.width, task.soft.teacher.card.size) for task in tasks}
    if any(size > SMALL or _draws(arch, width, size) for arch, width, size in networks):
        return 1
    return max(1, min(BESIDE, free_memory(job.device) // ROOM))


def _draws(arch: str, width: int | None, size: int) -> bool:
    """Whether a network draws random numbers in training."""
    with torch.device("meta"):
        return draws(build(arch, 10, 3, size, width))


def _with_shared_teachers(tasks: list[StudentTask], device: torch.device) -> list[StudentTask]:
    """The students, with `Quick` networks to ask, which threads can share.

    They are made before there are threads, since torch.fx follows every network that runs meanwhile, and asked once, since that
    compiles their kernels and leaves what their layers keep: threads change nothing in them.
    """
    made: dict[tuple[object, ...], SoftLabels] = {}

    def key(task: StudentTask) -> tuple[object, ...]:
        return id(task.soft), task.recipe.voters, task.recipe.label_statistics

    for task in tasks:
        if _asks(task) and _quickly(task.recipe, task.job.runtime, device) and key(task) not in made:
            found = made[key(task)] = asked(task.soft, task.recipe, task.job.runtime, device)
            card = found.teacher.card
            with settings(for_training(task.job.runtime)):  # kernels go to the device that is the current one there
                found.online(torch.zeros(2, card.channels, card.size, card.size, device=device), task.recipe)
    return [replace(task, soft=made.get(key(task), task.soft)) for task in tasks]


def _asks(task: StudentTask) -> bool:
    """Whether teachers are asked while this student is trained."""
    return task.score.labels == "soft" and task.soft.logits is None


def _dealt(missing: list[StudentTask], job: Job) -> tuple[list[StudentTask], list[StudentTask]]:
    """The students that one process trains alone, and those that all ranks train together: what is left when each had as many.

    With a few images per rank the exchange of gradients takes longer than the step, so such students are trained alone, too.
    """
    if job.world is None:
        return missing, []
    here = {str(task.score.key): task for task in missing}
    left = job.world.agree(lambda: [key for key, task in here.items() if not _is_done(task, job)], job.check)
    over = left[len(left) - len(left) % job.world.size :]
    shared = [key for key in over if here[key].batch >= TOGETHER * job.world.size]
    return [task for key, task in here.items() if key not in shared], [here[key] for key in shared]


def _is_done(task: StudentTask, job: Job) -> bool:
    return job.work is not None and _result(task, job.work).exists()


def _result(task: StudentTask, work: Path) -> Path:
    """The file of a finished student."""
    return work / f"{'-'.join(map(str, task.score.key)).replace(':', '_')}.json"


def train_student(task: StudentTask, emit: Emit) -> Score:
    """Train and test one student, or return its result if it was finished before."""
    if task.job.work is None:
        return _train(task, emit, None)
    done, team = _result(task, task.job.work), Team(task.job.world)
    if done.exists() and task.job.world is None:
        try:
            return Score(**storage.read_sealed(done))
        except IntegrityError:
            done.unlink()  # a damaged result is computed again
    slots = Slots(done.with_name(done.name.removesuffix(".json")))
    score = _train(task, emit, slots)
    if team.leads:
        storage.write_sealed(done, asdict(score))
        slots.clear()
    return score


def _train(task: StudentTask, emit: Emit, slots: Slots | None) -> Score:
    card, recipe, score, device = task.soft.teacher.card, task.recipe, task.score, task.job.device
    init = seed_of(score.seed, "student", task.arch) % 2**31  # paired: the same start for every set
    model = trainable(build(task.arch, len(card.classes), card.channels, card.size, task.width, init), device, card.size)
    team = Team(task.job.world, recipe.accumulate)
    model = team.synced(model, device)
    student = Student(task, model, device, emit, team)
    peak = recipe.rate(task.arch)
    optimizer = optimizer_of(model, recipe, task.arch, device)
    with settings(for_training(task.job.runtime)):
        history = fit(
            model,
            optimizer,
            score.epochs,
            student.batches,
            student.loss_of,
            lambda epoch: peak * recipe.factor(int(epoch), score.epochs),
            student.views.steps(task.train),
            after=student.tested,
            seed=score.seed,
            slots=slots,
            every=task.job.runtime.checkpoint_seconds,
            graphs=resolve(task.job.runtime).graphs == "on",
            team=team,
        )
    for record in history if team.leads else ():
        emit({"stage": "evaluate", "record": {"student": list(score.key), **record}})
    tested = [record["top1"] for record in history if "top1" in record]
    return replace(score, last=tested[-1], best=max(tested))


class Student:
    """A student in training: its views, its loss and its tests."""

    def __init__(self, task: StudentTask, model: nn.Module, device: torch.device, emit: Emit, team: Team | None = None) -> None:
        card, score, soft = task.soft.teacher.card, task.score, task.soft
        self.task, self.model, self.device, self.team = task, model, device, team or Team(parts=task.recipe.accumulate)
        self.network, self.emit = self.team.network(model, device), self.team.calm(emit)
        self.train, self.layout = _on(task.train, device), training_layout(model, device, card.size)
        self.soft = asked(soft, task.recipe, task.job.runtime, device) if _asks(task) else soft
        replayed = soft.logits is not None and score.labels == "soft"
        key: tuple[Any, ...] = ("relabel", soft.seed) if replayed else ("student", score.seed)
        period = len(soft.logits) if replayed and soft.logits is not None else None
        batch = soft.batch if replayed else task.batch
        self.views = Views(task.recipe, card.mean, card.std, card.flip, batch, key, period)

    def batches(self, epoch: int) -> Iterator[Given]:
        """Yield the tensors of each step of a pass."""
        start = 0
        for batch in self.views.epoch(self.train, epoch):
            yield self.given(batch, epoch, start)
            start += len(batch.index)
            self.emit({"stage": "evaluate", "done": len(batch.index)})

    def logits(self, images: Tensor) -> Tensor:
        """Logits [n,K] of images [n,C,H,W] that pass in the recipe's number of parts: a loss that is a mean over them all is the
        mean of the parts' losses, weighted by their images.
        """
        return torch.cat([self.network(part) for part in self.team.parts_of(images)])

    def given(self, batch: Batch, epoch: int, start: int) -> Given:
        """What the loss of a batch depends on: images, labels, and the stored labels or those of the partners with the own share."""
        if self.task.score.labels == "soft":
            whole = self.soft.logits is not None or (self.team.world and self.task.recipe.label_statistics != "remembered")
            return batch.images, batch.labels, *((self.soft.of(batch, epoch, start, self.task.recipe),) if whole else ())
        return batch.images, batch.labels, *(batch.others or ())

    def loss_of(self, images: Tensor, labels: Tensor, *more: Tensor) -> Tensor:
        """The recipe's distance to the teachers' labels, or cross-entropy shared between the two mixed labels."""
        recipe, runtime = self.task.recipe, self.task.job.runtime
        images = images.contiguous(memory_format=self.layout)
        if recipe.double_forward:
            with in_training(runtime), torch.no_grad():  # a block of its own: weights cast in here have no gradient
                self.logits(images)
        with in_training(runtime):
            logits = self.logits(images)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if self.task.score.labels == "soft":
            target = (more[0] if more else self.soft.online(images, recipe)).to(logits.dtype)  # labels of 32 bits stay so
            if recipe.loss == "mse+ce":
                return F.mse_loss(logits, target) + recipe.ce_weight * F.cross_entropy(logits, labels)
            return soft_loss(logits, target, recipe.temperature, recipe.squared_temperature)
        own = F.cross_entropy(logits, labels)
        if not more:
            return own
        partners, share = more
        return share * own + (1 - share) * F.cross_entropy(logits, partners)

    def tested(self, epoch: int) -> dict[str, Any]:
        """Test where the recipe says so and after the last epoch."""
        if not self.task.recipe.tests(epoch, self.task.score.epochs):
            return {}
        card = self.soft.teacher.card
        return {"top1": round(accuracy(self.model, self.task.test, card.mean, card.std, self.device, self.task.job.runtime, self.team), 4)}


class Quick(nn.Module):
    """A frozen network that takes and gives 32 bits, and computes in 16 in few passes: what labels cost beside a student's step.

    fp16, whose numbers have as many digits as the factors of TF32's products, and a smaller range.
    """

    def __init__(self, model: nn.Module, runtime: RuntimeConfig) -> None:
        super().__init__()
        self.runtime = replace(runtime, precision="fp16", memory_format="channels_last")
        self.network = fuse(lowered(model, self.runtime))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N,K] of normalised images [N,C,H,W]."""
        logits: Tensor = self.network(given_to(images, self.runtime))
        return logits.float()


def asked(soft: SoftLabels, recipe: Recipe, runtime: RuntimeConfig, device: torch.device) -> SoftLabels:
    """The same labels, of copies of the teachers, laid out as is fast: `Quick` ones on a GPU, where labels need nothing else.

    Copies, since a network that is asked for its labels with the batch's statistics changes meanwhile; `Quick` ones are shared.
    """
    if isinstance(soft.teacher.model, Quick):
        return soft
    networks = [trainable(copy.deepcopy(teacher.model), device, teacher.card.size) for teacher in soft.voters(recipe)]
    if _quickly(recipe, runtime, device):
        networks = [Quick(network, runtime) for network in networks]
    first, *others = [replace(teacher, model=model) for teacher, model in zip(soft.voters(recipe), networks, strict=True)]
    return replace(soft, teacher=first, others=tuple(others))


def _quickly(recipe: Recipe, runtime: RuntimeConfig, device: torch.device) -> bool:
    """Whether labels are computed on a GPU in fp16, as recover asks the teacher, by layers that remember their statistics."""
    half = runtime.precision == "fp16" and runtime.train_precision in HALVES
    return device.type != "cpu" and half and recipe.label_statistics == "remembered"


def soft_loss(student: Tensor, teacher: Tensor, temperature: float, squared: bool = False) -> Tensor:
    """KL(teacher || student) of tempered probabilities, mean over the batch; times T^2 where `squared` is set."""
    target = (teacher / temperature).log_softmax(1)
    loss = F.kl_div((student / temperature).log_softmax(1), target, reduction="batchmean", log_target=True)
    return loss * temperature**2 if squared else loss


def optimizer_of(model: nn.Module, recipe: Recipe, arch: str, device: torch.device) -> torch.optim.Optimizer:
    """The recipe's optimizer for a student of this architecture."""
    weight_decay = recipe.weight_decay_for(arch)
    whole = [{"params": list(model.parameters()), "weight_decay": weight_decay}]
    groups = whole if recipe.decay == "all" else decayed(model, weight_decay)
    if recipe.optimizer == "sgd":
        return sgd(groups, recipe.rate(arch), device, momentum=0.9)
    return adamw(groups, recipe.rate(arch), device, betas=recipe.betas)


def decayed(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two parameter groups: filters and matrices with weight decay; biases and BatchNorm's scales without."""
    named = list(model.named_parameters())
    heavy = [p for name, p in named if "weight" in name and p.ndim > 1]
    light = [p for name, p in named if not ("weight" in name and p.ndim > 1)]
    return [{"params": heavy, "weight_decay": weight_decay}, {"params": light, "weight_decay": 0.0}]


def shown(arch: str, width: int | None) -> str:
    """What an architecture is called in the scores: two widths are two students."""
    return arch if width is None else f"{arch}-w{width}"


def students_of(config: EvaluateConfig, arch: str, width: int | None) -> list[tuple[str, int | None]]:
    """(architecture, width) of the configured students, each once, under its first name; `arch` and `width` are the teacher's."""
    found: dict[tuple[str, int | None], tuple[str, int | None]] = {}
    for given in config.students:
        student = (arch, width) if given == "teacher" else named(given)
        found.setdefault(own_width(*student), student)
    return list(found.values())


def epochs_of(config: EvaluateConfig, recipe: Recipe, arch: str, classes: int, images: int) -> int:
    """Passes of a student of this architecture over a synthetic set of so many images: as configured, or the recipe's."""
    return config.epochs or recipe.passes(images, recipe.batch(classes, images // classes, arch))


def first_student(config: RunConfig, card: TeacherCard) -> tuple[str, int]:
    """Name and number of passes of the first student that a run's configuration asks for, on its synthetic set."""
    (arch, width), *_ = students_of(config.evaluate, card.arch, card.width)
    recipe, classes = recipe_of(config.evaluate.recipe, card.dataset, card.size, config.ipc), len(card.classes)
    return shown(arch, width), epochs_of(config.evaluate, recipe, arch, classes, classes * config.ipc)


def require_one_batch(recipe: Recipe, students: Sequence[tuple[str, int | None]], classes: int, ipc: int) -> None:
    """Refuse students that a recipe trains in other batches than those that stored labels belong to.

    Raises:
        ConfigError: names the first such student, and both sizes.
    """
    stored = recipe.batch(classes, ipc)
    for arch, width in students:
        if (own := recipe.batch(classes, ipc, arch)) != stored:
            raise ConfigError(
                f"{recipe.name} trains {shown(arch, width)} in batches of {own} images, and stored labels belong to batches of {stored}: "
                "set relabel_mode to online, or leave that student out"
            )


def _on(images: Images, device: torch.device) -> Images:
    if isinstance(images, TensorImages):
        return TensorImages(images.pixels.to(device), images.labels)
    return images
