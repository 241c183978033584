"""The table of data sets: what each is, where it comes from and which settings suit it. Plain values, no torch.

`DATASETS` holds the named sets; `spec_of` also makes the row of a user's own folder (`folder:PATH`), whose facts are
read from the files when it is opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from delt.errors import ConfigError, unknown

Statistics = tuple[float, ...]

OWN_FOLDER = "folder:"  # what a data set's name starts with when the rest of it is a path


def short_name(dataset: str) -> str:
    """What a data set is called in a folder's name, or on a page that may be passed on: of an own folder its last part alone.

    >>> short_name("folder:/home/me/cats")
    'cats'
    """
    return dataset.removeprefix(OWN_FOLDER).rstrip("/").split("/")[-1]


@dataclass(frozen=True)
class DatasetSpec:
    """One data set. `None` means: read from the files."""

    name: str
    classes: tuple[str, ...] | None  # in label order
    count: int | None  # number of classes
    channels: int | None
    size: int | None  # pixels per side, where the configuration names none
    mean: Statistics | None  # per channel, over all pixels of the training images in 0 .. 1
    std: Statistics | None
    flip: bool  # whether a mirror image is still of its class
    floor: (
        float | None
    )  # test accuracy in % that any sane teacher passes; None: half as much again as chance, or half way from there to 100
    source: Literal["digits", "torchvision", "folder"]
    train: str = "train"  # subfolders of the two parts
    test: str = "val"
    folders: tuple[str, ...] = ()  # names that the published folder has; looked for inside the data root
    hint: str = ""  # where to get it
    words: tuple[str, ...] | None = None  # what `classes` mean, where those are identifiers
    defaults: Mapping[str, Any] = field(default_factory=dict, hash=False)  # flat settings that suit this set
    preset: str = "paper"  # where none is given
    images: tuple[int, int] | None = None  # for training and for testing, as published; for plans, where the files are not here


CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_CIFAR100 = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm
"""
CIFAR100_CLASSES = tuple(_CIFAR100.split())

IMAGENETTE = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}

IMAGEWOOF = {
    "n02086240": "Shih-Tzu",
    "n02087394": "Rhodesian ridgeback",
    "n02088364": "beagle",
    "n02089973": "English foxhound",
    "n02093754": "Border terrier",
    "n02096294": "Australian terrier",
    "n02099601": "golden retriever",
    "n02105641": "Old English sheepdog",
    "n02111889": "Samoyed",
    "n02115641": "dingo",
}


def _imagenet(name: str, count: int, floor: float, hint: str, **rest: Any) -> DatasetSpec:
    """A row of the ImageNet family: 224 pixels, the statistics that every published weight of it was trained with."""
    words: dict[str, str] | None = rest.pop("names", None)
    return DatasetSpec(
        name=name,
        classes=tuple(words) if words else None,
        count=count,
        channels=3,
        size=224,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        flip=True,
        floor=floor,
        source="folder",
        hint=hint,
        words=tuple(words.values()) if words else None,
        **rest,
    )


_ROWS = (
    DatasetSpec(
        name="digits",
        classes=tuple("0123456789"),
        count=10,
        channels=1,
        size=8,
        mean=(0.3054,),
        std=(0.3761,),
        flip=False,
        floor=90.0,
        source="digits",
        # 8 px: a shift of one pixel is large, a crop of 8 % is two pixels wide; the loss weights were chosen on a
        # split of the training set (benchmarks/LOG.md)
        defaults={"teacher_pad": 1, "recover_bn_weight": 3.0, "recover_lr": 0.1, "recover_min_crop": 0.3},
        preset="demo",  # no paper has a protocol for it
        images=(1347, 450),
        hint="inside the scikit-learn package",
    ),
    # Standard deviations over all pixels. The often copied (.2023, .1994, .2010) of CIFAR-10 is the mean of the
    # images' own deviations, which is smaller.
    DatasetSpec(
        name="cifar10",
        classes=CIFAR10_CLASSES,
        count=10,
        channels=3,
        size=32,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        flip=True,
        floor=60.0,
        source="torchvision",
        folders=("cifar-10-batches-py",),
        images=(50_000, 10_000),
        hint="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    ),
    DatasetSpec(
        name="cifar100",
        classes=CIFAR100_CLASSES,
        count=100,
        channels=3,
        size=32,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        flip=True,
        floor=30.0,
        source="torchvision",
        folders=("cifar-100-python",),
        images=(50_000, 10_000),
        hint="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    ),
    DatasetSpec(
        name="tiny-imagenet",
        classes=None,
        count=200,
        channels=3,
        size=64,
        mean=(0.4802, 0.4481, 0.3975),
        std=(0.2770, 0.2691, 0.2821),
        flip=True,
        floor=25.0,
        source="folder",
        folders=("tiny-imagenet-200", "tiny-imagenet"),
        images=(100_000, 10_000),
        hint="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        # SRe2L's squeeze of this set: longer training makes a better teacher and worse synthetic images
        defaults={
            "teacher_epochs": 50,
            "teacher_batch": 256,
            "teacher_lr": 0.2,
            "teacher_weight_decay": 1e-4,
            "teacher_warmup": 0.1,
        },
    ),
    _imagenet(
        "imagenette",
        10,
        60.0,
        "https://github.com/fastai/imagenette",
        names=IMAGENETTE,
        images=(9469, 3925),
        folders=("imagenette2", "imagenette2-320", "imagenette2-160", "imagenette"),
    ),
    _imagenet(
        "imagewoof",
        10,
        35.0,
        "https://github.com/fastai/imagenette",
        names=IMAGEWOOF,
        images=(9025, 3929),
        folders=("imagewoof2", "imagewoof2-320", "imagewoof2-160", "imagewoof"),
    ),
    _imagenet(
        "imagenet-100",
        100,
        40.0,
        "100 class folders of ImageNet-1K",
        folders=("imagenet-100", "imagenet100"),
        images=(128_000, 5000),  # 1,280 of a class, about: it depends on the hundred
        defaults={"evaluate_full": False},  # days of training
    ),
    _imagenet(
        "imagenet-1k",
        1000,
        35.0,
        "https://image-net.org (ILSVRC 2012, with val/ sorted into class folders)",
        folders=("imagenet-1k", "imagenet"),
        images=(1_281_167, 50_000),
        defaults={"teacher_weights": "IMAGENET1K_V1", "evaluate_full": False},
    ),
    _imagenet(
        "imagenet-21k",  # ImageNet-21K-P of winter 2021 (arXiv 2104.10972), which CDA distils (arXiv 2311.18838)
        10_450,
        10.0,
        "https://github.com/Alibaba-MIIL/ImageNet21K (winter 2021, with train/ and val/ of class folders)",
        folders=("imagenet-21k", "imagenet21k"),
        images=(11_060_223, 522_500),
        defaults={"evaluate_full": False, "iterations": 2000},  # as CDA
    ),
)

DATASETS: dict[str, DatasetSpec] = {row.name: row for row in _ROWS}


def chosen(dataset: str, classes: tuple[str, ...], wanted: tuple[str, ...]) -> tuple[str, ...]:
    """The classes of a run in label order: all of the data set, or those that are wanted, in the order in which they are named.

    >>> chosen("digits", tuple("0123456789"), ("7", "1"))
    ('7', '1')

    Raises:
        ConfigError: a name that is no class of the data set, with the nearest that is.
    """
    known = set(classes)
    for name in wanted:
        if name not in known:
            raise unknown(f"class of {dataset}", name, classes)
    return wanted or classes


def spec_of(name: str) -> DatasetSpec:
    """The row of a data set's name, or of a user's own folder: `spec_of("folder:/home/me/birds")`.

    Raises:
        ConfigError: the name is not in the table (with the nearest one), or `folder:` has no path.
    """
    if name in DATASETS:
        return DATASETS[name]
    if not name.startswith(OWN_FOLDER):
        raise unknown("data set", name, [*DATASETS, "folder:PATH"])
    if not name.removeprefix(OWN_FOLDER).strip():
        raise ConfigError("data set 'folder:' names no path; write folder:PATH")
    return DatasetSpec(
        name=name,
        classes=None,
        count=None,
        channels=None,
        size=None,
        mean=None,
        std=None,
        flip=True,
        floor=None,
        source="folder",
        hint="a folder with train/CLASS/ and val/CLASS/ or test/CLASS/, or with class folders",
    )
