"""The verdict on a batch: counts, expected false alarms, estimated share of anomalies, drift; and the gates on it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

import numpy as np

from anomaly_cli.config import FlagRule
from anomaly_cli.detector.calibration import Calibration
from anomaly_cli.errors import ConfigError
from anomaly_cli.files import write_bytes
from anomaly_cli.statistics.drift import drift
from anomaly_cli.statistics.fdr import null_proportion
from anomaly_cli.statistics.prevalence import anomaly_share
from anomaly_cli.tables.row import Row


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What one run of `score` says about its batch; None where there are too few images.

    Attributes:
        rule: what chose the flagged ones, as options of the command line.
        expected_false_alarms: upper estimate of the normal images among the flagged.
        anomaly_share: estimated share of anomalies among the readable files, flagged or not; `_low` and `_high` are
            the ends of its 95 % interval.
        drift: whether the bulk of the batch differs from the normal images.
        drift_scale: the scale that differs most.
        drift_nearer: whether it lies nearer to the normal images at that scale than new normal images do.
        smallest_p: no p-value can be below it.
        passed_over: files in folders that are no images, by kind.
    """

    model: str
    normal_images: int
    smallest_p: float
    files: int
    readable: int
    unreadable: int
    rule: str
    flagged: int
    expected_false_alarms: float
    anomaly_share: float | None
    anomaly_share_low: float | None
    anomaly_share_high: float | None
    drift: bool
    drift_p_value: float | None
    drift_scale: str | None
    drift_nearer: bool | None
    worst_path: str
    worst_score: float
    passed_over: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> bytes:
        r"""Write one JSON object; bytes of a name that is not UTF-8 are escapes `\udcXX`, as in the table."""
        return json.dumps(asdict(self), indent=2).encode() + b"\n"


def judge_batch(
    rows: Sequence[Row], scale_names: Sequence[str], calibration: Calibration, rule: FlagRule, model: Path
) -> Verdict:
    """Judge a batch.

    Args:
        rows: in rank order, flagged by `rule`; at least one is readable.
        scale_names: of the first columns of `Row.scales`; further ones are not judged.
        calibration: of the model.
        rule: that flagged the rows.
        model: file.
    """
    readable = [row for row in rows if row.score is not None]
    scores = np.array([row.score for row in readable], np.float64)
    normal_scores, normal_scales = calibration.scores(calibration.normal_deviations)
    share = anomaly_share(normal_scores, scores)
    S = len(scale_names)
    drifted = drift(normal_scales[:, 1 : S + 1], [row.scales[:S] for row in readable])  # column 0 is the fused map
    return Verdict(
        model=str(model),
        normal_images=len(normal_scores),
        smallest_p=1 / (len(normal_scores) + 1),
        files=len(rows),
        readable=len(readable),
        unreadable=len(rows) - len(readable),
        rule=str(rule),
        flagged=sum(row.flagged for row in rows),
        expected_false_alarms=expected_false_alarms(readable),
        anomaly_share=None if share is None else share.value,
        anomaly_share_low=None if share is None else share.low,
        anomaly_share_high=None if share is None else share.high,
        drift=drifted is not None and drifted.found,
        drift_p_value=None if drifted is None else drifted.p_value,
        drift_scale=None if drifted is None else scale_names[drifted.scale],
        drift_nearer=None if drifted is None else drifted.nearer,
        worst_path=readable[0].path,
        worst_score=scores[0],
    )


def expected_false_alarms(readable: Sequence[Row]) -> float:
    """Estimate an upper bound on the normal images among the flagged: π₀ · N · (largest flagged p-value)."""
    p = [row.p_value for row in readable if row.p_value is not None]
    flagged = [row.p_value for row in readable if row.flagged and row.p_value is not None]
    return min(null_proportion(p) * len(p) * max(flagged, default=0.0), len(flagged))


def write_verdict(verdict: Verdict, out: Path | None) -> None:
    """Write the verdict as JSON, to stdout where `out` is None.

    Raises:
        OutputError: `out` cannot be written.
        BrokenPipeError: the reader of stdout went away.
    """
    write_bytes(verdict.to_json(), out)


@dataclass(frozen=True)
class Gate:
    """A condition under which a run shall fail.

    Attributes:
        text: as given: `flagged`, `unreadable`, each also `>N` or `>N%` of all files, or `drift`.
        subject: the word in front.
        limit: how many, or how many percent, are still allowed.
        percent: whether `limit` is a percentage.
    """

    text: str
    subject: str
    limit: float
    percent: bool

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a gate.

        Raises:
            ConfigError: it is not one.
        """
        match = re.fullmatch(r"(?:(drift)|(flagged|unreadable)(?:>(\d+(?:\.\d+)?)(%?))?)", text)
        if match is None:
            raise ConfigError(
                f"--fail-on must be flagged, unreadable (each also >N or >N%) or drift, got {text or 'nothing'}"
            )
        drifted, counted, limit, percent = match.groups()
        return cls(text, drifted or counted, float(limit or 0), bool(percent))

    def tripped_by(self, verdict: Verdict) -> str | None:
        """Explain in a few words why the gate trips; None if it does not."""
        if self.subject == "drift":
            return f"p = {verdict.drift_p_value:.2g}" if verdict.drift else None
        count = verdict.flagged if self.subject == "flagged" else verdict.unreadable
        measured = 100 * count / verdict.files if self.percent else count
        return f"{count} of {verdict.files} files" if measured > self.limit else None
