"""The shared engine behind the command line: one function a subcommand; it never prints and never exits."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from anomaly_cli.backbone import build_backbone
from anomaly_cli.checkpoint import Model, Provenance, fingerprint, library_versions, load_model, read_header, save_model
from anomaly_cli.config import DEFAULT_RULE, DetectorConfig, Engine, FlagRule
from anomaly_cli.devices import choose_device, choose_devices
from anomaly_cli.distributed import joined, local_device
from anomaly_cli.errors import InputError, OutputError
from anomaly_cli.images import find_images
from anomaly_cli.journal import Journal, open_journal
from anomaly_cli.normals import Run, never_enlarging
from anomaly_cli.packed_resnet import processor
from anomaly_cli.patches import cut_patches
from anomaly_cli.path_patterns import EVERY_FILE, PathPatterns
from anomaly_cli.resuming import Announce, resumed
from anomaly_cli.scoring import Progress, flag_rows, mark_copies, measure_on, to_row, worker_count
from anomaly_cli.table import (
    Row,
    TableFormat,
    format_of,
    is_written_directly,
    os_errors_as_output_error,
    write_table,
)
from anomaly_cli.verdict import Verdict, judge

if TYPE_CHECKING:
    from anomaly_cli.training import TrainedDetector

_Measure = Callable[[list[Path]], Generator[Row]]  # a row a file, in any order


@dataclass(frozen=True)
class TrainReport:
    """What `train` learned."""

    model_path: Path
    model: Model
    unreadable: list[tuple[Path, str]]
    suspects: list[Path]
    copies: int
    copies_together: int
    reused: dict[str, tuple[int, int]] = field(default_factory=dict)  # phase: how much a killed run had done of it


@dataclass(frozen=True)
class ScoreReport:
    """What `score` found: rows in rank order, and what they say about the batch."""

    rows: list[Row]
    scale_names: tuple[str, ...]
    rule: FlagRule
    verdict: Verdict
    with_quality: bool

    @property
    def readable(self) -> list[Row]:
        """Rows of the files that could be read, most anomalous first."""
        return [row for row in self.rows if row.status == "ok"]

    @property
    def flagged(self) -> list[Row]:
        """Rows that the chosen rule calls anomalous."""
        return [row for row in self.rows if row.flagged]

    @property
    def unreadable(self) -> list[Row]:
        """Rows of the files that could not be read."""
        return [row for row in self.rows if row.status != "ok"]

    @property
    def copies(self) -> list[Row]:
        """Rows of the files that are copies or near-copies of another."""
        return [row for row in self.rows if row.duplicate_group is not None]


def collect(inputs: Sequence[Path], patterns: PathPatterns = EVERY_FILE) -> list[Path]:
    """List the images of the inputs; of those found in folders only the ones that the patterns match.

    Raises:
        InputError: there is none, or an input does not exist.
    """
    paths = find_images(inputs, patterns)
    if not paths:
        matched = "" if patterns == EVERY_FILE else " that --include and --exclude let pass"
        raise InputError(f"no image found in {', '.join(map(os.fspath, inputs))}{matched}")
    return paths


def train(
    normal: Sequence[Path],
    model_path: Path,
    config: DetectorConfig,
    *,
    anomalies: Sequence[Path] = (),
    weights: Path | None = None,
    audit_normals: Path | None = None,
    patterns: PathPatterns = EVERY_FILE,
    thumbnails: bool = True,
    resume: Announce | None = None,
    device: str = "auto",
    progress: Progress,
) -> TrainReport:
    """Learn what normal looks like and write the model file, and on request a table of the normal images.

    The file keeps small pictures of where its prototypes come from, unless `thumbnails` is false. With `resume` what is
    done is saved on the way, and what a killed run had done is not done again. Of several processes, started by
    `torchrun`, the first one writes.
    """
    from anomaly_cli.normal_audit import score_normals
    from anomaly_cli.training import train_detector  # brings scikit-learn, which scoring starts faster without

    check_writable(model_path)
    audit_format = None if audit_normals is None else check_output(audit_normals, None)
    paths = collect(normal, patterns)
    known = collect(anomalies, patterns) if anomalies else []
    with joined() as processes:
        workers = max(1, worker_count() // processes.beside)
        paths, known = processes.from_first((paths, known))  # of a folder that is being filled each saw its own
        config = processes.from_first(never_enlarging(config, paths, workers))
        run = Run(config, choose_device(local_device(device)), workers, progress, processes)
        backbone = build_backbone(config.backbone, weights, config.seed)
        resuming = resumed(run, model_path, [paths, known], backbone, resume) if resume else nullcontext(run)
        with resuming as run:
            trained = train_detector(paths, known, backbone, run)
            model = _save(trained, model_path, run, thumbnails=thumbnails)
            if audit_format is not None and processes.is_first:
                rows = list(score_normals(trained, run))
                write_table(rows, trained.detector.column_names, audit_normals, audit_format)
    normals = trained.normals
    return TrainReport(
        model_path=model_path,
        model=model,
        unreadable=normals.unreadable + trained.unreadable_anomalies,
        suspects=trained.suspects,
        copies=normals.copies,
        copies_together=normals.held_out_together,
        reused=run.saved.reused,
    )


def _save(trained: TrainedDetector, path: Path, run: Run, *, thumbnails: bool) -> Model:
    """Write the model file in the first process; the others have no thumbnails in theirs."""
    first = run.processes.is_first
    provenance = Provenance(
        images=len(trained.normals.paths),
        anomalies=trained.anomalies,
        unreadable=len(trained.normals.unreadable),
        suspects=len(trained.suspects),
        training_set=trained.normals.digest,
        versions=library_versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    patches = cut_patches(trained.origins, trained.normals.paths, run) if thumbnails and first else {}
    model = Model(trained.detector, trained.calibration, trained.map_unit, run.config, provenance, patches)
    if first:
        save_model(model, path)
    return model


def check_writable(path: Path) -> None:
    """Refuse an output that cannot be written before the work is done, not after."""
    parent = path.parent
    try:
        if not parent.is_dir():
            raise OutputError(f"cannot write {path}: no such folder: {parent}")
        if path.is_dir():
            raise OutputError(f"cannot write {path}: it is a folder")
        target = Path(os.path.realpath(path))
        replaced = target.is_file() or not target.exists()  # pipes and devices are written as they are
        if replaced and not os.access(target.parent, os.W_OK):
            raise OutputError(f"cannot write {path}: permission denied")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error


def score(
    inputs: Sequence[Path],
    model_path: Path,
    *,
    rule: FlagRule = DEFAULT_RULE,
    patterns: PathPatterns = EVERY_FILE,
    journal: Journal | None = None,
    with_quality: bool = True,
    device: str = "auto",
    engine: Engine = Engine.LOCAL,
    progress: Progress,
) -> ScoreReport:
    """Rank images by how far they deviate from normal; the table is written by `write_scores`.

    Raises:
        ClusterError: the machines of the engine cannot do it.
        AnomalyError: an input, the model or the device cannot be used.
    """
    measure: _Measure
    if engine is Engine.RAY:
        from anomaly_cli import cluster

        cluster.check_engine(device)
        measure = partial(cluster.measure_rows, model_path=model_path, device=device, with_quality=with_quality)
        model = load_model(model_path)
    else:
        devices = choose_devices(device)
        model = load_model(model_path, devices[0])
        measure = partial(measure_rows, model=model, devices=devices, with_quality=with_quality)
    paths = collect(inputs, patterns)
    ranked = flag_rows(mark_copies(score_files(paths, measure, progress, journal)), rule)
    names = model.detector.column_names
    verdict = judge(ranked, model.detector.scale_names, model.calibration, rule, model_path)
    return ScoreReport(ranked, names, rule, verdict, with_quality)


def rank(paths: list[Path], model: Model, device: torch.device, progress: Progress) -> list[Row]:
    """Score files by a model on its device and rank them, as `score` does; nothing is written.

    Raises:
        InputError: none of them can be read.
    """
    measure = partial(measure_rows, model=model, devices=[device], with_quality=True)
    return flag_rows(mark_copies(score_files(paths, measure, progress)), DEFAULT_RULE)


def open_journal_of(
    table: Path, model_path: Path, device: str, *, with_quality: bool = True, engine: Engine = Engine.LOCAL
) -> AbstractContextManager[Journal]:
    """Open the journal of a table for `score`; its rows hold for this model on this machine and these versions only.

    The processors of a cluster are unknown here: what it measured goes on in a cluster only.
    """
    local = engine is Engine.LOCAL
    identity = {
        "model": fingerprint(model_path),
        "device": str(choose_device(device)) if local else device,
        "quality": str(with_quality),
        "processor": processor() if local else f"{engine} cluster",
        **library_versions(),
    }
    return open_journal(table, identity)


def score_files(paths: list[Path], measure: _Measure, progress: Progress, journal: Journal | None = None) -> list[Row]:
    """Measure those files that the journal has not; rows in any order.

    Raises:
        InputError: none can be read.
    """
    rows = [] if journal is None else journal.finished(paths)
    done = {row.path for row in rows}
    left = [path for path in paths if os.fspath(path) not in done]
    with closing(measure(left)) as measured:  # closed, it lets go of threads or machines, also after Ctrl-C
        for row in measured:
            rows.append(row)
            if journal is not None:
                journal.add(row)
            progress("scoring", len(rows), len(paths))
    if all(row.status != "ok" for row in rows):
        raise nothing_readable(len(rows), rows[0].path, rows[0].reason)
    return rows


def measure_rows(paths: list[Path], model: Model, devices: list[torch.device], *, with_quality: bool) -> Generator[Row]:
    """Measure files on the devices of this machine and yield a row each."""
    size, workers = model.config.image_size, worker_count()
    results = measure_on(devices, model.detector, model.map_unit, paths, size, workers, with_quality=with_quality)
    for path, result in zip(paths, results, strict=True):
        yield to_row(path, result, model.calibration)


def nothing_readable(count: int, first: str | Path, reason: str) -> InputError:
    """Make the error of a run in which no file could be read."""
    return InputError(f"none of the {count} files can be read, first {first}: {reason}")


def check_output(out: Path | None, chosen: TableFormat | None) -> TableFormat:
    """Choose the format of the table and refuse an impossible target before the work is done."""
    table_format = format_of(out, chosen)
    check_target(out)
    return table_format


def check_target(out: Path | None) -> None:
    """Refuse a file that cannot be written; None is stdout."""
    if out is None:
        return
    with os_errors_as_output_error(str(out)):
        replaced = out.is_dir() or not is_written_directly(out)
    if replaced:
        check_writable(out)


def write_scores(report: ScoreReport, out: Path | None, table_format: TableFormat) -> None:
    """Write the table to a file, or to stdout where `out` is None."""
    write_table(report.rows, report.scale_names, out, table_format, with_quality=report.with_quality)


def info(model_path: Path) -> dict[str, Any]:
    """Describe a model file: its header, with prototypes and channels a scale."""
    return read_header(model_path)
