"""`anomaly train`: learn a model from normal images and print what was learned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anomaly_cli.commands import console
from anomaly_cli.commands.console import (
    NAMES_SHOWN,
    by_scale,
    plural,
    print_stderr,
    say_passed_over,
    warn_unreadable,
    warn_unreliable_labels,
)
from anomaly_cli.commands.inputs import check_local, patterns_of
from anomaly_cli.commands.options import (
    DEFAULTS,
    BackboneName,
    Device,
    EffortLevel,
    Exclude,
    ImageSize,
    Include,
    ModelFile,
    Prototypes,
    Quiet,
    Roi,
    Seed,
    Weights,
)
from anomaly_cli.config import MAX_SMALLEST_DEFECT, MIN_SMALLEST_DEFECT, DetectorConfig, parse_window
from anomaly_cli.images.find import check_named
from anomaly_cli.paths import paths_of

if TYPE_CHECKING:
    from anomaly_cli.training.step_cache import SavedSteps
    from anomaly_cli.training.train import TrainReport


Normal = Annotated[list[str], typer.Argument(metavar="NORMAL_DIR...", help="Folders or files of normal images.")]

Anomalies = Annotated[
    list[str] | None,
    typer.Option(metavar="DIR", help="Labelled anomalous images; they train the classifier, never the memory."),
]

AuditNormals = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Also write a table of the normal images, each scored as if unseen."),
]

NoThumbnails = Annotated[
    bool,
    typer.Option("--no-thumbnails", help="Store no small pictures of normal patches in the model, for private data."),
]

Resume = Annotated[
    bool,
    typer.Option(
        "--resume", help="Save finished steps beside the model, so that the same command continues after a kill."
    ),
]

SmallestDefect = Annotated[
    int | None,
    typer.Option(
        metavar="PIXELS",
        min=MIN_SMALLEST_DEFECT,
        max=MAX_SMALLEST_DEFECT,
        help="Read large pictures in tiles, so finely that a defect of so many pixels of the file spans two cells "
        "of the finest map; the smaller, the slower.",
    ),
]

IntensityWindowText = Annotated[
    str | None,
    typer.Option(
        "--intensity-window",
        metavar="LOW,HIGH|auto",
        help="Values of grey deeper than 8 bit that become black and white; "
        "auto: the 0.1 and 99.9 percentiles of the normal images.",
    ),
]


def train(
    normal: Normal,
    model: ModelFile = Path("anomaly.safetensors"),
    anomalies: Anomalies = None,
    audit_normals: AuditNormals = None,
    backbone: BackboneName = DEFAULTS.backbone,
    weights: Weights = None,
    effort: EffortLevel = DEFAULTS.effort,
    image_size: ImageSize = DEFAULTS.image_size,
    intensity_window: IntensityWindowText = None,
    smallest_defect: SmallestDefect = None,
    prototypes: Prototypes = DEFAULTS.prototypes,
    roi: Roi = None,
    seed: Seed = DEFAULTS.seed,
    include: Include = None,
    exclude: Exclude = None,
    no_thumbnails: NoThumbnails = False,
    resume: Resume = False,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Learn what normal looks like from a folder of normal images."""
    config = DetectorConfig(backbone=backbone, effort=effort, seed=seed, prototypes=prototypes, image_size=image_size)
    config = replace(config, smallest_defect=smallest_defect, intensity_window=parse_window(intensity_window))
    images, anomalous = _named_paths(normal, anomalies, local=resume)
    from anomaly_cli.training import distributed
    from anomaly_cli.training.train import train as train_model

    quiet = quiet or distributed.rank_of_environment() > 0
    with console.progress(quiet) as progress:
        report = train_model(
            images,
            model,
            config,
            anomalies=anomalous,
            weights=weights,
            roi=roi,
            audit_normals=audit_normals,
            patterns=patterns_of(include, exclude),
            thumbnails=not no_thumbnails,
            resume=warn_discarded if resume else None,
            tell=None if quiet else print_stderr,
            device=device,
            progress=progress,
        )
    if not quiet:
        summarise_training(report, audit_normals)


def _named_paths(normal: list[str], anomalies: list[str] | None, *, local: bool) -> tuple[list[Path], list[Path]]:
    """Check that all paths exist and, where they must, are files of this machine."""
    images, anomalous = paths_of(normal), paths_of(anomalies)
    check_named([*images, *anomalous])
    if local:
        check_local([*images, *anomalous])
    return images, anomalous


def warn_discarded(steps: SavedSteps) -> None:
    """Warn that the steps of an earlier training run cannot be used by this one."""
    if steps.discarded:
        print_stderr(
            f"warning: {steps.folder} is of other images, settings, version or machine: starting over, "
            f"{plural(steps.discarded, 'finished step')} given up"
        )


def summarise_training(report: TrainReport, audited: Path | None) -> None:
    """Print what was learned, which normal images to check, and what to type next."""
    for phase, (done, total) in report.reused.items():
        print_stderr(f"resumed: {phase}, {done} of {total} were done already")
    warn_unreadable(report.unreadable)
    say_passed_over(report.passed_over)
    _warn_copies(report)
    _warn_outliers(report, audited)
    model = report.model
    warn_unreliable_labels(model.label_reliability)
    detector = model.detector
    memories = by_scale({name: len(detector.scale(name).memory.prototypes) for name in detector.scale_names})
    normals = model.calibration.normal_scores
    images, size = plural(model.provenance.images, "image"), model.config.image_size
    print_stderr(f"learned normal from {images} at {size} px with the {model.config.backbone} backbone")
    print_stderr(f"prototypes: {memories}")
    print_stderr(
        f"held-out normal images score {normals[0]:.2f} to {normals[-1]:.2f}, median {normals[len(normals) // 2]:.2f}; "
        "1 is the limit of normal (99 %)"
    )
    megabytes = f" ({report.model_path.stat().st_size / 1e6:.0f} MB)" if detector.backbone.libraries else ""
    print_stderr(f"saved {report.model_path}{megabytes}; next: anomaly score DIR --out scores.csv")


def _warn_copies(report: TrainReport) -> None:
    if not report.copies:
        return
    counted = (
        f"{report.copies} of the {plural(report.model.provenance.images, 'normal image')} are copies or near-copies"
    )
    if report.copies_together == report.copies:
        print_stderr(f"warning: {counted} of others; they were held out together, which keeps the p-values valid")
    else:
        print_stderr(
            f"warning: {counted} of others, most of them of one image: p-values will be too small for other images"
        )


def _warn_outliers(report: TrainReport, audited: Path | None) -> None:
    outliers, images = report.outliers, report.model.provenance.images
    if not outliers:
        return
    verb, them = ("is an outlier", "it") if len(outliers) == 1 else ("are outliers", "them")
    print_stderr(
        f"warning: {len(outliers)} of the {plural(images, 'normal image')} {verb}, left out of every memory; "
        f"if not normal, remove {them} and train again:"
    )
    for path in outliers[:NAMES_SHOWN]:
        print_stderr(f"  {path}")
    where = "flagged in" if audited else "to see all: --audit-normals FILE"
    more = len(outliers) - NAMES_SHOWN
    if more > 0 or audited:
        print_stderr(f"  {f'and {more} more, ' if more > 0 else ''}{where}{f' {audited}' if audited else ''}")
