"""Score a list of files and judge the batch: the work of `anomaly score`, without printing."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from anomaly_cli.config import DEFAULT_REGIONS, DEFAULT_RULE, Engine, FlagRule, RegionRule
from anomaly_cli.detector.checkpoint import Model, fingerprint, library_versions, load_model, read_header
from anomaly_cli.detector.devices import choose_device, choose_devices, processor
from anomaly_cli.errors import InputError
from anomaly_cli.images.find import by_count, collect
from anomaly_cli.images.patterns import EVERY_FILE, PathPatterns
from anomaly_cli.images.roi import open_roi
from anomaly_cli.scoring.batch_verdict import Verdict, judge_batch
from anomaly_cli.scoring.journal import Journal, open_journal
from anomaly_cli.scoring.measure import Scorer, choose_roi
from anomaly_cli.scoring.parallel import Progress, worker_count
from anomaly_cli.scoring.rows import RankedRows, flag_rows, mark_copies, measure_rows
from anomaly_cli.scoring.tiled import tell_cost
from anomaly_cli.tables.formats import TableFormat
from anomaly_cli.tables.row import Row
from anomaly_cli.tables.writer import Table

_Measure = Callable[[list[Path]], Generator[Row]]  # one row per file, in any order


@dataclass(frozen=True)
class ScoreReport(RankedRows):
    """What `score` found: ranked rows, and what they say about the batch."""

    rule: FlagRule
    verdict: Verdict
    with_quality: bool

    @property
    def readable(self) -> list[Row]:
        """Rows of the files that could be read, most anomalous first."""
        return [row for row in self.rows if row.status == "ok"]

    @property
    def copies(self) -> list[Row]:
        """Rows of the files that are copies or near-copies of another."""
        return [row for row in self.rows if row.duplicate_group is not None]


def score(
    inputs: Sequence[Path],
    model_path: Path,
    *,
    rule: FlagRule = DEFAULT_RULE,
    patterns: PathPatterns = EVERY_FILE,
    journal: Journal | None = None,
    roi: Path | None = None,
    with_quality: bool = True,
    device: str = "auto",
    engine: Engine = Engine.LOCAL,
    region_rule: RegionRule = DEFAULT_REGIONS,
    tell: Callable[[str], None] | None = None,
    progress: Progress,
) -> ScoreReport:
    """Rank images by how far they deviate from normal; the table is written by `write_scores`.

    `tell` is called with what reading images in tiles will cost.

    Raises:
        ClusterError: the machines of the engine cannot do it.
        AnomalyError: an input, the model or the device cannot be used.
    """
    paths = collect(inputs, patterns, passed_over := Counter[str]())
    measure: _Measure
    if engine is Engine.RAY:
        from anomaly_cli.scoring import ray_cluster

        ray_cluster.check_engine(device)
        measure = partial(
            ray_cluster.measure_on_cluster,
            model_path=model_path,
            roi=roi,
            device=device,
            with_quality=with_quality,
            region_rule=region_rule,
        )
        model = load_model(model_path)
        choose_roi(model, roi, paths)
    else:
        devices = choose_devices(device)
        model = load_model(model_path, devices[0])
        region = choose_roi(model, roi, paths)
        scorer = Scorer(model, devices, roi=region, with_quality=with_quality, region_rule=region_rule)
        measure = partial(measure_rows, scorer=scorer)
    tell_cost(tell, model.config, model.detector.backbone, model.detector.local_names, paths, worker_count())
    ranked = flag_rows(mark_copies(score_files(paths, measure, progress, journal)), rule)
    verdict = judge_batch(ranked, model.detector.scale_names, model.calibration, rule, model_path)
    verdict = replace(verdict, passed_over=by_count(passed_over))
    return ScoreReport(ranked, model.detector.column_names, rule, verdict, with_quality)


def rank(
    paths: list[Path],
    model: Model,
    device: torch.device,
    progress: Progress,
    roi: Path | None = None,
    region_rule: RegionRule = DEFAULT_REGIONS,
) -> list[Row]:
    """Score files by a model on its device and rank them, as `score` does; nothing is written.

    Raises:
        InputError: none of them can be read.
    """
    region = choose_roi(model, roi)
    scorer = Scorer(model, [device], roi=region, with_quality=True, region_rule=region_rule)
    measure = partial(measure_rows, scorer=scorer)
    return flag_rows(mark_copies(score_files(paths, measure, progress)), DEFAULT_RULE)


def open_journal_of(
    table: Path,
    model_path: Path,
    device: str,
    *,
    roi: Path | None = None,
    with_quality: bool = True,
    engine: Engine = Engine.LOCAL,
    region_rule: RegionRule = DEFAULT_REGIONS,
) -> AbstractContextManager[Journal]:
    """Open the journal of a table for `score`; its rows are valid for this model, machine and library versions only.

    The processors of a cluster are unknown here, so a run of a cluster is resumed in a cluster only.
    """
    local = engine is Engine.LOCAL
    identity = {
        "model": fingerprint(model_path),
        "device": str(choose_device(device)) if local else device,
        "quality": str(with_quality),
        "regions": str(region_rule),
        "processor": processor() if local else f"{engine} cluster",
        **({} if roi is None else {"roi": open_roi(roi).digest}),
        **library_versions(),
    }
    return open_journal(table, identity)


def score_files(paths: list[Path], measure: _Measure, progress: Progress, journal: Journal | None = None) -> list[Row]:
    """Measure the files that are not in the journal; rows in any order.

    Raises:
        InputError: none can be read.
    """
    rows = [] if journal is None else journal.finished(paths)
    done = {row.path for row in rows}
    left = [path for path in paths if os.fspath(path) not in done]
    with closing(measure(left)) as measured:  # closing it ends its threads or leaves the cluster, also after Ctrl-C
        for row in measured:
            rows.append(row)
            if journal is not None:
                journal.add(row)
            progress("scoring", len(rows), len(paths))
    if all(row.status != "ok" for row in rows):
        raise nothing_readable(len(rows), rows[0].path, rows[0].reason)
    return rows


def nothing_readable(count: int, first: str | Path, reason: str) -> InputError:
    """Make the error of a run in which no file could be read."""
    return InputError(f"none of the {count} files can be read, first {first}: {reason}")


def write_scores(report: ScoreReport, out: Path | None, table_format: TableFormat) -> None:
    """Write the table to a file, or to stdout where `out` is None."""
    Table(report.rows, report.scale_names, report.with_quality).write(out, table_format)


def info(model_path: Path) -> dict[str, Any]:
    """Describe a model file: its header, with prototypes and channels of each scale."""
    return read_header(model_path)
