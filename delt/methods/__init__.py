"""Methods as rows of one table, and the rules that turn a few words of a user into a whole configuration.

What is not given is filled in this order: the fields' defaults, what suits the data set, the preset, the fidelity, the
method, then what the user said. A method is a row of settings; nothing else in the package asks for its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from delt.config import FIDELITY, PRESETS, RunConfig, flatten, unflatten
from delt.data.specs import DatasetSpec, chosen, short_name, spec_of
from delt.errors import ConfigError, unknown
from delt.models.zoo import named, own_width
from delt.recipes import RECIPES, recipe_of
from delt.schedule import plan

Flat = dict[str, Any]
SELECTORS = {"dataset": "digits", "method": "delt", "preset": "paper", "fidelity": "fixed"}  # what the rest starts from
OWN = "paper"  # the recipe that means the method's own
SCHEDULE = ("round_iterations", "sub_batches")  # derived from iterations and ipc where they are not given


@dataclass(frozen=True)
class Method:
    """One row: what the method is, and the settings that make it."""

    title: str
    settings: Callable[[DatasetSpec], Flat]
    locked: tuple[str, ...] = ()  # settings without which it would be another method


def _delt(spec: DatasetSpec) -> Flat:
    return {"rank_keep": "medium", "recover_grouping": "class"}


def _sre2l(spec: DatasetSpec) -> Flat:
    """Published settings: ImageNet-1K lr .25, bn .01, jitter 32; Tiny-ImageNet lr .1, bn 1; CIFAR-100 no crop and no mirror
    and 1,000 iterations (arXiv 2306.13092).
    """
    own = {
        "tiny-imagenet": {"recover_lr": 0.1, "recover_bn_weight": 1.0},
        "cifar100": {"recover_min_crop": 1.0, "recover_flip": False, "iterations": 1000},
        "digits": {"recover_bn_weight": 0.1},  # of five values on a split of the training set, as for every method there
    }
    return {**_from_noise(spec), "recover_curriculum": "none", **own.get(spec.name, {})}


def _cda(spec: DatasetSpec) -> Flat:
    """Published settings: ImageNet-1K lr .25, bn .01, jitter 32; Tiny-ImageNet lr .4, bn .05, jitter 4; ImageNet-21K lr .05, bn .25
    (arXiv 2311.18838).
    """
    own = {
        "tiny-imagenet": {"recover_lr": 0.4, "recover_bn_weight": 0.05},
        "imagenet-21k": {"recover_lr": 0.05, "recover_bn_weight": 0.25},
        "digits": {"recover_bn_weight": 0.03},
    }
    return {**_from_noise(spec), **own.get(spec.name, {})}


def _from_noise(spec: DatasetSpec) -> Flat:
    """What SRe2L and CDA share: noise, one image of each class in a group, all images optimised from the start to the end."""
    size = spec.size or 224
    jitter = 32 if size > 64 else 4 if size >= 32 else 1
    return {"rank_keep": "noise", "recover_grouping": "mixed", "sub_batches": 1, "recover_jitter": jitter}


def _rded(spec: DatasetSpec) -> Flat:
    """Published settings: 300 images a class, the best of 5 crops of each, easiest first; 2 x 2 above 64 px (arXiv 2312.03526)."""
    factor = 2 if (spec.size or 224) > 64 else 1
    return {"rank_keep": "easy", "rank_images": 300, "rank_crops": 5, "rank_factor": factor, "iterations": 0}


def _delt_rded(spec: DatasetSpec) -> Flat:
    """RDED's images as a start for EarlyLate. Small steps, wide crops and a heavier match at 32 to 64 px are our choice, made on
    held-out images of CIFAR-10 (benchmarks/LOG.md): published steps are for 224 px and undo a good start.
    """
    start = {name: value for name, value in _rded(spec).items() if name.startswith("rank_")}
    gentle = {"recover_lr": 0.02, "recover_bn_weight": 3.0, "recover_min_crop": 0.5} if 32 <= (spec.size or 224) <= 64 else {}
    return {**start, "recover_grouping": "class", **gentle}


def _gvbsm(spec: DatasetSpec) -> Flat:
    """Published settings (arXiv 2311.17950): ImageNet-1K lr .1, 80 images, average .4, resized crops, jitter 32; CIFAR and
    Tiny-ImageNet lr .05, 100 images, average .8, convolutions dropped with .4, crops shifted by an eighth of the side.

    What differs: of CIFAR's five backbones WRN-16-2 is left out, MobileNetV2 has its full width and the ConvNet BatchNorm; all are
    trained as any teacher here (published: 5 epochs on CIFAR-10); averages and turns start anew with each pack of groups.
    """
    size = spec.size or 224
    common = {
        "rank_keep": "noise",
        "recover_grouping": "class",
        "sub_batches": 1,
        "recover_curriculum": "none",
        "recover_match": "bn+conv",
        "recover_densify": 1.0,
    }
    if size > 64:
        others = ["mobilenet_v2", "efficientnet_b0", "shufflenet_v2_x0_5"]
        return {
            **common,
            "teacher_others": others,
            "recover_lr": 0.1,
            "recover_group_size": 80,
            "recover_average": 0.4,
            "recover_jitter": 32,
        }
    lr = {"recover_lr": 0.05, "recover_jitter": 32} if size >= 32 else {"recover_bn_weight": 0.3, "recover_jitter": 1}  # digits: own rate
    others = ["convnet3", "mobilenet_v2", "shufflenet_v2_x0_5"]
    small = {"recover_average": 0.8, "recover_drop": 0.4, "recover_pad": max(1, size // 8), "recover_save": "png"}
    return {**common, **lr, **small, "teacher_others": others}


def _fadrm(spec: DatasetSpec) -> Flat:
    """Published settings (NeurIPS 2025): median patches, 4 x 500 iterations at 200 and 224 px in turn (small sets at their own
    size), lr .25; Imagenette lr .05; Tiny-ImageNet 2 x 500, lr .01.
    """
    own = {"tiny-imagenet": {"iterations": 1000, "recover_stages": 2, "recover_lr": 0.01}, "imagenette": {"recover_lr": 0.05}}
    own |= {"digits": {"recover_bn_weight": 1.0}}
    return {
        **_from_noise(spec),
        "rank_keep": "medium",
        "recover_curriculum": "none",
        "iterations": 2000,
        "recover_stages": 4,
        "recover_small_side": 200 / 224 if (spec.size or 224) > 64 else 1.0,
        "recover_save": "png",
        **own.get(spec.name, {}),
    }


def _chosen(keep: str) -> Callable[[DatasetSpec], Flat]:
    """Whole real images as they are, all of a class to choose from."""
    return lambda spec: {"rank_keep": keep, "rank_images": 0, "rank_crops": 0, "rank_factor": 1, "iterations": 0}


_random = _chosen("random")


def with_earlylate(base: Method) -> Method:
    """EarlyLate as a plug-in: the same method, whose images join in sub-batches."""

    def settings(spec: DatasetSpec) -> Flat:
        return {name: value for name, value in base.settings(spec).items() if name not in SCHEDULE}

    return Method(f"EarlyLate on: {base.title}", settings, tuple(name for name in base.locked if name not in SCHEDULE))


def _given(spec: DatasetSpec) -> Flat:
    """Nothing is chosen and nothing is optimised."""
    return {"rank_keep": "given", "rank_crops": 0, "rank_factor": 1, "iterations": 0}


_AS_THEY_ARE = ("rank_keep", "rank_crops", "rank_factor", "iterations")

METHODS: dict[str, Method] = {
    "delt": Method("EarlyLate on median real patches (DELT, CVPR 2025)", _delt),
    "sre2l": Method(
        "noise, mixed-class groups, one crop range (SRe2L, NeurIPS 2023)",
        _sre2l,
        ("recover_grouping", "sub_batches", "recover_curriculum"),
    ),
    "cda": Method("noise, mixed-class groups, crop curriculum (CDA, TMLR 2024)", _cda, ("recover_grouping", "sub_batches")),
    "gvbsm": Method(
        "several teachers in turn, BatchNorm and convolution statistics (G-VBSM, CVPR 2024)",
        _gvbsm,
        ("recover_match", "recover_grouping", "sub_batches", "recover_curriculum"),
    ),
    "fadrm": Method("stages at two sizes, blended with the real patches (FADRM, NeurIPS 2025)", _fadrm, ("recover_stages", "sub_batches")),
    "rded": Method("easiest real patches, not optimised (RDED, CVPR 2024)", _rded, ("rank_keep", "rank_crops", "iterations")),
    "random": Method("randomly chosen real images: the control", _random, _AS_THEY_ARE),
    "herding": Method("real images whose mean feature is the class's: a control", _chosen("herding"), _AS_THEY_ARE),
    "kmeans": Method("the real image nearest to each of ipc cluster centres: a control", _chosen("kmeans"), _AS_THEY_ARE),
    "given": Method("images from elsewhere, as they are", _given, _AS_THEY_ARE),
}


def _plug_in(name: str, method: Method) -> dict[str, Method]:
    """`delt+NAME` for a method that optimises all its images from the start to the end; nothing for others."""
    return {f"delt+{name}": with_earlylate(method)} if method.settings(spec_of("digits")).get("sub_batches") == 1 else {}


METHODS |= {name: late for base, method in METHODS.items() for name, late in _plug_in(base, method).items()}
METHODS["delt+rded"] = Method(
    "EarlyLate on RDED's patches, in small steps where images are small (ours)", _delt_rded, ("rank_keep", "rank_crops")
)


def register(name: str, method: Method) -> None:
    """Add a method of your own to the table: from now on it is a method like any other, in this process.

    One that switches EarlyLate off (`sub_batches` 1) can be had with it, too, as `delt+NAME`.

    >>> register("mine", Method("what it is", lambda spec: {"rank_keep": "hard", "recover_grouping": "mixed"}))

    Raises:
        ConfigError: the name is taken, or a setting does not exist or does not fit.
    """
    if name in METHODS:
        raise ConfigError(f"method {name} is in the table already ({METHODS[name].title}); choose another name")
    METHODS[name] = method
    try:
        configure(method=name)
    except ConfigError:
        del METHODS[name]
        raise
    METHODS.update(_plug_in(name, method))


CONTROLS: dict[str, Flat] = {
    "random": {"method": "random", "rank_folder": None, **_random(spec_of("digits"))},
    "start": {"iterations": 0},
    "one_sub_batch": {"sub_batches": 1},
}


def configure(dataset: str = "digits", **given: Any) -> RunConfig:
    """Return the whole configuration of a run from flat settings; `None` means not given.

    >>> configure("digits", ipc=5, preset="demo").recover.sub_batches
    5

    Raises:
        ConfigError: an unknown name (with the nearest), a wrong type or range, or settings that do not fit together.
    """
    given = {name: value for name, value in {"dataset": dataset, **given}.items() if value is not None}
    if not isinstance(dataset, str):
        raise ConfigError(f"dataset is {dataset!r}; allowed is a name or folder:PATH")
    spec = _spec_of(dataset, given.get("data_size"))
    start = {name: given.get(name, default) for name, default in {**SELECTORS, "preset": spec.preset}.items()}
    _refuse_senseless(start["method"])
    for name, table in (("method", METHODS), ("preset", PRESETS), ("fidelity", FIDELITY)):
        _known(name, start[name], table)
    preset = dict(PRESETS[start["preset"]])
    if "teacher_arch" in given:
        preset.pop("teacher_width", None)  # it was chosen for the preset's own architecture
    own = _as_short(preset, METHODS[start["method"]].settings(spec))
    layers = [{"preset": start["preset"]}, spec.defaults, preset, FIDELITY[start["fidelity"]], own, given]
    flat = {name: value for layer in layers for name, value in layer.items()}
    if "data_classes" in given and "teacher_weights" not in given:
        flat.pop("teacher_weights", None)  # published ones know all classes
    if flat.get("teacher_others") and "teacher_others" not in given:
        first = own_width(flat.get("teacher_arch", "resnet18"), flat.get("teacher_width"))
        flat["teacher_others"] = [name for name in flat["teacher_others"] if own_width(*named(name)) != first]
    return completed(unflatten(flat))


def _spec_of(dataset: str, size: object) -> DatasetSpec:
    """The data set's row at the size that it is used in, by which methods choose."""
    spec = spec_of(dataset)
    return replace(spec, size=size) if isinstance(size, int) else spec


def _as_short(preset: Flat, own: Flat) -> Flat:
    """A method's settings under a preset: one that shortens runs does so for every method, one that shrinks the teacher also shrinks
    those beside it, unless the method names their width.
    """
    own, others = dict(own), preset.pop("teacher_others", None)
    if others and any(named(name)[1] is None for name in own.get("teacher_others", ())):
        own["teacher_others"] = others
    if "iterations" in preset and own.get("iterations"):
        del own["iterations"]
    return own


def _refuse_senseless(method: object) -> None:
    """Say why EarlyLate on this method has no meaning, rather than that it is unknown."""
    base = method.removeprefix("delt+") if isinstance(method, str) and method.startswith("delt+") else ""
    if base in METHODS and method not in METHODS:
        possible = ", ".join(name for name in METHODS if name.startswith("delt+"))
        still = METHODS[base].settings(spec_of("digits")).get("iterations") == 0
        why = "optimises nothing, so no image can join later than another" if still else "has EarlyLate already"
        raise ConfigError(f"method is {method}, but {base} {why}; possible are {possible}")


def _known(what: str, name: object, table: Mapping[str, object]) -> None:
    if not isinstance(name, str) or name not in table:
        raise unknown(what, name, table)


def completed(config: RunConfig) -> RunConfig:
    """Fill what follows from other settings (schedule, mirror, the method's own recipe) and check that all fit together.

    Raises:
        ConfigError: an unknown recipe or class, or no recipe of the method's own; a schedule that does not fit, or a setting that the
            method excludes.
    """
    _known("method", config.method, METHODS)
    spec, flat, row = _spec_of(config.dataset, config.data.size), flatten(config), METHODS[config.method]
    if spec.classes:
        names = chosen(spec.name, spec.classes, config.data.classes)
        chosen(f"{spec.name} to record", (*names, "none"), config.recover.record_classes)
    own = _as_short(dict(PRESETS[config.preset]), row.settings(spec))
    means = flatten(unflatten(own))
    for name in own:
        if name in row.locked and flat[name] != means[name]:
            raise ConfigError(
                f"{name} is {flat[name]!r}, and method {config.method} means {means[name]!r}: leave it out or choose another method"
            )
    recover = config.recover
    schedule = recover.schedule(config.ipc)
    if recover.iterations:
        recover = replace(recover, round_iterations=schedule.round_iterations, sub_batches=schedule.sub_batches)
    if misfit := next(_misfits(config), None):
        raise ConfigError(misfit)
    recipe = _own_recipe(config.method) if config.evaluate.recipe == OWN else config.evaluate.recipe
    recipe_of(recipe)
    flip = spec.flip if recover.flip is None else recover.flip
    return replace(config, recover=replace(recover, flip=flip), evaluate=replace(config.evaluate, recipe=recipe))


def _misfits(config: RunConfig) -> Iterator[str]:
    """What in these settings has no meaning together, and what to do about it."""
    rank, recover = config.rank, config.recover
    if rank.folder and rank.keep != "given":
        yield f"rank_folder is for rank_keep given, and it is {rank.keep}: leave it out, or choose method given"
    if rank.keep == "given" and (rank.crops or rank.factor > 1):
        yield "rank_keep given takes whole images as they are: leave out rank_crops and rank_factor"
    if recover.iterations and recover.stages > recover.iterations:
        yield (
            f"{recover.iterations} iterations do not make {recover.stages} stages: give at least {recover.stages} iterations, "
            f"or recover_stages 1 to {recover.iterations}"
        )
    if recover.match == "bn" and recover.drop:
        yield "recover_drop leaves out convolutions, and recover_match bn has none: leave it out, or give recover_match bn+conv"
    if recover.grouping == "class" and recover.group_rounds > 1:
        yield "recover_group_rounds is for mixed groups, and a class group holds all images of its classes: leave it out"
    single = recover.grouping == "mixed" and recover.group_rounds == 1
    if single and recover.densify:
        yield "recover_densify needs several images of a class in a group: leave it out, or give recover_grouping class"


def require_size(config: RunConfig, size: int) -> None:
    """Refuse settings that a method chose for other images than an own folder turned out to hold.

    Raises:
        ConfigError: naming them, and the setting that tells the size.
    """
    spec, flat, settings = _spec_of(config.dataset, config.data.size), flatten(config), METHODS[config.method].settings
    if spec.size is None:
        rows = settings(spec), settings(replace(spec, size=size))
        usual, right = (flatten(unflatten(row)) for row in rows)
        wrong = [name for name in {**rows[0], **rows[1]} if usual[name] != right[name] and flat[name] == usual[name]]
        if wrong:
            raise ConfigError(
                f"method {config.method} sets {', '.join(wrong)} by the images' size, which nobody told, and took them for large; those "
                f"of {short_name(config.dataset)} have {size} pixels per side: give data_size {size} (--data-size {size})"
            )


def _own_recipe(method: str) -> str:
    """The student protocol that a method was published with; EarlyLate as a plug-in keeps its base's."""
    name = f"{OWN}:{method.removeprefix('delt+')}"
    if name not in RECIPES:
        raise ConfigError(f"evaluate_recipe is {OWN}, but no protocol was published for method {method}; possible are {', '.join(RECIPES)}")
    return name


def changed(config: RunConfig, given: Mapping[str, Any]) -> RunConfig:
    """A configuration with some flat settings replaced; a schedule that followed from iterations and ipc is derived anew.

    Of RI and M that do not follow from iterations and ipc, M stays where either could have been the one that was said.

    Raises:
        ConfigError: as `configure`; also for another data set, method, preset or fidelity, which decide what the other
            settings start from.
    """
    flat = flatten(config)
    given = {name: value for name, value in given.items() if value is not None}
    for name in SELECTORS:
        if given.get(name, flat[name]) != flat[name]:
            raise ConfigError(f"the configuration was made for {name} {flat[name]}, not {given[name]}: start anew with `delt run DATASET`")
    return _replaced(config, given)


def said(config: RunConfig) -> Flat:
    """The few settings from which `configure` makes this configuration: where it starts from, and what differs from there."""
    flat = flatten(config)
    given = {name: flat[name] for name in SELECTORS}
    usual = flatten(configure(**given))
    few = given | {name: value for name, value in flat.items() if value != usual[name]}
    # RI and M follow from each other where one is left out, so one of them may have to stand at its usual value.
    return few if configure(**few) == config else few | {name: flat[name] for name in SCHEDULE}


def control_of(config: RunConfig, name: str) -> RunConfig | None:
    """The configuration of a control beside a run; None where the run is that control itself."""
    if not config.recover.iterations and name == "one_sub_batch":
        return None  # nothing is optimised
    if config.rank.keep == "noise" and name == "start":
        return None  # there are no patches
    control = _replaced(config, {**CONTROLS[name], "evaluate_controls": [], "evaluate_full": False})
    return None if (control.method, control.rank, control.recover) == (config.method, config.rank, config.recover) else control


def _replaced(config: RunConfig, given: Mapping[str, Any]) -> RunConfig:
    """`config` with some settings replaced; of the schedule's numbers those stay that somebody chose."""
    flat, recover = flatten(config), config.recover
    stay = set(METHODS[given.get("method", config.method)].locked)
    if given.get("iterations") != 0:
        if "round_iterations" not in given and recover.sub_batches != plan(recover.iterations, config.ipc).sub_batches:
            stay.add("sub_batches")
        if "sub_batches" not in given and recover.sub_batches and recover.round_iterations != recover.iterations // recover.sub_batches:
            stay.add("round_iterations")
    if {"iterations", "ipc", *SCHEDULE} & set(given):
        flat |= dict.fromkeys(name for name in SCHEDULE if name not in stay)
    return completed(unflatten({**flat, **given}))
