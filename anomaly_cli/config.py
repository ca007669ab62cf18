"""Settings of a detector, checked once where they are made; command-line defaults are read from here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import inf
from typing import Literal, Self, TypeVar

from anomaly_cli.errors import ConfigError

DEFAULT_FDR = 0.05  # share of the flagged images that may be normal
MIN_NORMALS = 8  # readable normal images; fewer leave nothing to hold out for the calibration
MIN_BATCH = 20  # readable images, and held-out normal ones: fewer are too few to judge a batch as a whole
MIN_IMAGE_SIZE, MAX_IMAGE_SIZE, IMAGE_SIZE_STEP = 64, 1024, 32  # pixels
MIN_SMALLEST_DEFECT, MAX_SMALLEST_DEFECT = 4, 1000  # pixels of the files
BACKBONE_ALIASES = {"dinov2": "vit_small_patch14_dinov2.lvd142m", "dinov3": "vit_small_patch16_dinov3.lvd1689m"}

Name = TypeVar("Name", bound=StrEnum)


def choose_one(options: Mapping[Name, float | None]) -> tuple[Name, float] | None:
    """Find the one option that was given, None or False being not given; None if there is none.

    Raises:
        ConfigError: several were given.
    """
    given = [(name, value) for name, value in options.items() if value is not None and value is not False]
    if len(given) > 1:
        raise ConfigError(f"give only one of {', '.join(f'--{name}' for name, _ in given)}")
    return given[0] if given else None


class Effort(StrEnum):
    """How long stage 1 of `scratch` runs."""

    QUICK = "quick"
    STANDARD = "standard"
    THOROUGH = "thorough"


class Engine(StrEnum):
    """Where `score` computes: on this machine, or on those of a Ray cluster."""

    LOCAL = "local"
    RAY = "ray"


class RoiKind(StrEnum):
    """Which region of interest a model has: one for all images, or one a file name."""

    ONE = "one"
    BY_NAME = "by name"


class RawMap(StrEnum):
    """How `heatmap --raw` stores the anomaly map itself; here, as `--help` may not import what draws."""

    PNG16 = "png16"
    NPY = "npy"

    @property
    def suffix(self) -> str:
        """What is added to the name of the image."""
        return ".map.png" if self is RawMap.PNG16 else ".map.npy"


class Rule(StrEnum):
    """What decides which images `score` flags: the name of the option."""

    FDR = "fdr"
    THRESHOLD = "threshold"
    TOP = "top"
    MAX_FALSE_ALARMS = "max-false-alarms"


@dataclass(frozen=True)
class FlagRule:
    """Which images `score` flags.

    Attributes:
        kind: q-value ≤ value; score ≥ value; the `value` highest scores; or as many as keep the expected number of
            flagged normal images of a run ≤ value.
        value: of the option.
    """

    kind: Rule = Rule.FDR
    value: float = DEFAULT_FDR

    def __post_init__(self) -> None:
        """Check the range.

        Raises:
            ConfigError: the value is out of its range.
        """
        allowed, good = {
            Rule.FDR: ("between 0 and 1", 0 < self.value < 1),
            Rule.THRESHOLD: ("0 or more", self.value >= 0),
            Rule.TOP: ("1 or more", self.value >= 1),
            Rule.MAX_FALSE_ALARMS: ("more than 0", self.value > 0),
        }[self.kind]
        if not good:
            raise ConfigError(f"--{self.kind} must be {allowed}, got {self.value}")

    @classmethod
    def choose(cls, options: Mapping[Rule, float | None]) -> Self:
        """Make the rule of the one option that was given, or the default; see `choose_one`."""
        given = choose_one(options)
        return cls(*given) if given else cls()

    def __str__(self) -> str:
        return f"--{self.kind} {self.value:g}"


DEFAULT_RULE = FlagRule()

IntensityWindow = tuple[float, float] | Literal["auto"] | None


@dataclass(frozen=True, kw_only=True)
class RegionRule:
    """Which regions of an anomaly map are counted, and what of them is kept.

    Attributes:
        threshold: map values from here on belong to regions; 1 = the limit of normal.
        min_area: pixels of the file; smaller regions are left out.
        listed: whether each is kept, beside their number.
        outlined: whether its outline is kept, too.
    """

    threshold: float = 1.0
    min_area: int = 0
    listed: bool = False
    outlined: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.threshold < inf:
            raise ConfigError(f"--region-threshold must be a number above 0, got {self.threshold:g}")
        if self.min_area < 0:
            raise ConfigError(f"--min-area must be 0 pixels or more, got {self.min_area}")


DEFAULT_REGIONS = RegionRule()


def parse_window(text: str | None) -> IntensityWindow:
    """Read LOW,HIGH or auto; None stays.

    Raises:
        ConfigError: it is neither.
    """
    if text is None:
        return None
    if text == "auto":
        return "auto"
    try:
        low, high = map(float, text.split(","))
    except ValueError as error:
        raise ConfigError(f"--intensity-window must be LOW,HIGH or auto, got {text}") from error
    return low, high


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """What a detector is: changing any field needs a new training run."""

    backbone: str = "embedded"  # `embedded`, `scratch`, or a model name of torchvision or timm
    image_size: int = 256  # pixels; images are resized to about this many pixels squared, aspect kept
    prototypes: int = 2000  # upper limit per scale
    effort: Effort = Effort.STANDARD
    seed: int = 0
    intensity_window: IntensityWindow = None  # values of deep grey images that become black and white
    smallest_defect: int | None = None  # pixels of the files; None reads images at `image_size` only
    roi: RoiKind | None = None  # masks that say which part of an image is inspected; None for all of it

    @property
    def window(self) -> tuple[float, float] | None:
        """The intensity window as numbers, once `train` has read the images for "auto"."""
        return None if self.intensity_window == "auto" else self.intensity_window

    @property
    def size_step(self) -> int:
        """Sides of images at network size are multiples of it, pixels; a transformer has its patch in its name."""
        patch = re.search(r"patch(\d+)", self.backbone)
        return int(patch[1]) if patch and int(patch[1]) and IMAGE_SIZE_STEP % int(patch[1]) else IMAGE_SIZE_STEP

    def __post_init__(self) -> None:
        """Resolve the alias of a backbone, round the image size to its patches, and check every range.

        Raises:
            ConfigError: a value is out of its range.
        """
        object.__setattr__(self, "backbone", BACKBONE_ALIASES.get(self.backbone, self.backbone))
        if self.size_step != IMAGE_SIZE_STEP:
            object.__setattr__(self, "image_size", round(self.image_size / self.size_step) * self.size_step)
        size = self.image_size
        if not MIN_IMAGE_SIZE <= size <= MAX_IMAGE_SIZE or size % self.size_step:
            rule = f"a multiple of {self.size_step} from {MIN_IMAGE_SIZE} to {MAX_IMAGE_SIZE}"
            raise ConfigError(f"image size must be {rule}, got {size}")
        if not 8 <= self.prototypes <= 100_000:
            raise ConfigError(f"prototypes must be from 8 to 100000, got {self.prototypes}")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed must be from 0 to 2^63 - 1, got {self.seed}")
        smallest, largest = MIN_SMALLEST_DEFECT, MAX_SMALLEST_DEFECT
        if self.smallest_defect is not None and not smallest <= self.smallest_defect <= largest:
            rule = f"from {smallest} to {largest} pixels"
            raise ConfigError(f"smallest defect must be {rule}, got {self.smallest_defect}")
        if self.intensity_window not in (None, "auto"):
            low, high = map(float, self.intensity_window)
            if not -inf < low < high < inf:
                raise ConfigError(f"intensity window must be LOW,HIGH with LOW below HIGH, got {low:g},{high:g}")
            object.__setattr__(self, "intensity_window", (low, high))  # a list where a model file was read
