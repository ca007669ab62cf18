"""Measured images to rows of the table: copies marked, rows flagged."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from anomaly_cli.config import DEFAULT_REGIONS, FlagRule, RegionRule, Rule
from anomaly_cli.detector.calibration import Calibration
from anomaly_cli.errors import UnreadableImageError
from anomaly_cli.images.duplicates import group_near_duplicates
from anomaly_cli.scoring.measure import Measured, Scorer
from anomaly_cli.scoring.regions import find_regions, peak_region
from anomaly_cli.statistics.fdr import q_values
from anomaly_cli.tables.row import RegionRow, Row, rank_rows


@dataclass(frozen=True)
class RankedRows:
    """Rows in rank order, and the names of their scales."""

    rows: list[Row]
    scale_names: tuple[str, ...]

    @property
    def flagged(self) -> list[Row]:
        """Rows called anomalous."""
        return [row for row in self.rows if row.flagged]

    @property
    def unreadable(self) -> list[Row]:
        """Rows of the files that could not be read."""
        return [row for row in self.rows if row.status != "ok"]


def measure_rows(paths: Sequence[Path], scorer: Scorer) -> Generator[Row]:
    """Measure files and yield one row per file, in order."""
    for path, result in zip(paths, scorer.measure(paths), strict=True):
        yield make_row(path, result, scorer.model.calibration, scorer.region_rule)


def make_row(
    path: Path,
    result: Measured | UnreadableImageError,
    calibration: Calibration,
    region_rule: RegionRule = DEFAULT_REGIONS,
) -> Row:
    """Make the table row of one file; q-value and flag need the whole run and are added later."""
    name = os.fspath(path)
    if isinstance(result, UnreadableImageError):
        return Row(path=name, status="unreadable", reason=result.reason)
    scores, scales = calibration.scores(result.deviations[None])
    region = peak_region(result.anomaly_map, 1.0, result.height, result.width)
    regions = regions_of(result, region_rule)
    row = Row(
        path=name,
        score=float(scores[0]),
        p_value=float(calibration.p_values(scores)[0]),
        width=result.width,
        height=result.height,
        region_x=region.x,
        region_y=region.y,
        region_w=region.width,
        region_h=region.height,
        region_fraction=region.fraction,
        regions=len(regions),
        region_from=str(result.region_from),
        region_list=regions if region_rule.listed else (),
        scales=tuple(float(value) for value in scales[0, 1:]),
    )
    return row if result.quality is None else replace(row, **asdict(result.quality))


def regions_of(measured: Measured, rule: RegionRule) -> tuple[RegionRow, ...]:
    """Find the regions of an image that the rule takes, highest peak first."""
    size = measured.height, measured.width
    return find_regions(measured.anomaly_map, measured.top_scales, measured.scale_names, rule, size)


def mark_copies(rows: list[Row]) -> list[Row]:
    """Number the groups of duplicates and near-duplicates among the rows with quality values, in the order of paths."""
    marked = list(rows)
    order = sorted((i for i, row in enumerate(rows) if row.perceptual_hash), key=lambda i: os.fsencode(rows[i].path))
    content_hashes, perceptual_hashes = (
        [getattr(rows[i], name) for i in order] for name in ("content_hash", "perceptual_hash")
    )
    groups = group_near_duplicates(content_hashes, perceptual_hashes, [rows[i].brightness or 0.0 for i in order])
    for i, group in zip(order, groups.tolist(), strict=True):
        if group:
            marked[i] = replace(rows[i], duplicate_group=group)
    return marked


def flag_rows(rows: list[Row], rule: FlagRule) -> list[Row]:
    """Rank the rows, add q-values over the whole run and flag what the rule chooses."""
    ranked = rank_rows(rows)
    p = np.array([row.p_value for row in ranked if row.p_value is not None])
    chosen = []
    for index, (row, q) in enumerate(zip(ranked, q_values(p).tolist(), strict=False)):  # unreadable ones come last
        flagged = {
            Rule.FDR: q <= rule.value,
            Rule.THRESHOLD: (row.score or 0.0) >= rule.value,
            Rule.TOP: index < rule.value,
            # Of N images at most N are normal, and of these a share of at most p gets a p-value of p or less.
            Rule.MAX_FALSE_ALARMS: (row.p_value or 1.0) * len(p) <= rule.value,
        }[rule.kind]
        chosen.append(replace(row, q_value=q, flagged=flagged))
    return [*chosen, *ranked[len(p) :]]
