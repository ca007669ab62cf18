"""What a person reads on stderr: progress while working, summaries afterwards; stdout is never touched."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from anomaly_cli.config import MIN_BATCH, FlagRule, Rule
from anomaly_cli.scales import scale_title
from anomaly_cli.standard_streams import let_go_of

if TYPE_CHECKING:
    from anomaly_cli.auditing import AuditReport
    from anomaly_cli.drawing import HeatmapReport
    from anomaly_cli.evaluation import Evaluation, Figure
    from anomaly_cli.pipeline import ScoreReport, TrainReport
    from anomaly_cli.report import PageReport
    from anomaly_cli.saved_steps import SavedSteps
    from anomaly_cli.table import Row
    from anomaly_cli.updating import UpdateReport
    from anomaly_cli.verdict import Verdict

PLAIN_INTERVAL_S = 5.0  # between progress lines where there is no terminal
WORST_SHOWN = 5
NAMES_SHOWN = 3
FIGURES_IN_WORDS = {
    "image_auroc": "image AUROC",
    "f1_max": "best F1 of any cut",
    "fpr_at_95_recall": "false alarms at 95 % recall",
    "pixel_auroc": "pixel AUROC",
    "aupro": "AUPRO up to FPR 0.3",
}
CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}


class ProgressCallback(Protocol):
    """How the pipeline reports: phase, images done, images in all."""

    def __call__(self, phase: str, done: int, total: int, /) -> None:
        """Report progress."""


def say(text: str) -> None:
    """Print one line for people on stderr."""
    try:
        print(escaped(text, sys.stderr.encoding), file=sys.stderr, flush=True)
    except OSError:  # a log on a full disk or a reader that went away must not cost the table
        let_go_of(sys.stderr)


def escaped(text: str, encoding: str | None) -> str:
    """Escape what would break a line, steer a terminal or have no encoding: file names hold anything."""
    encoding = encoding or "utf-8"
    return text.translate(CONTROLS).encode(encoding, "backslashreplace").decode(encoding)


class _PlainProgress:
    """One line every few seconds, for logs: phase, count, rate and time left."""

    def __init__(self) -> None:
        self.phase = ""
        self.started = self.spoken = time.monotonic()

    def __call__(self, phase: str, done: int, total: int, /) -> None:
        now = time.monotonic()
        if phase != self.phase:
            self.phase, self.started, self.spoken = phase, now, now
        elif now - self.spoken >= PLAIN_INTERVAL_S and 0 < done < total:
            rate = done / (now - self.started)
            say(f"{phase}: {done} of {total}, {rate:.1f}/s, {(total - done) / rate:.0f} s left")
            self.spoken = now


@contextmanager
def progress(quiet: bool) -> Iterator[ProgressCallback]:
    """Show progress: bars on a terminal, now and then a line elsewhere, nothing when quiet."""
    if quiet:
        yield lambda _phase, _done, _total: None
    elif not sys.stderr.isatty():
        yield _PlainProgress()
    else:
        with _bars() as callback:
            yield callback


@contextmanager
def _bars() -> Iterator[ProgressCallback]:
    from rich import progress as rich_progress
    from rich.console import Console

    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn("{task.fields[rate]}"),
        rich_progress.TimeRemainingColumn(),
    )
    tasks: dict[str, rich_progress.TaskID] = {}
    with rich_progress.Progress(*columns, console=Console(stderr=True), transient=True) as bars:

        def update(phase: str, done: int, total: int, /) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase, total=total, rate="")
            speed = bars.tasks[list(tasks).index(phase)].speed
            bars.update(tasks[phase], completed=done, total=total, rate=f"{speed:.0f}/s" if speed else "")

        yield update


def plural(count: int, noun: str) -> str:
    """Count a noun: `1 file`, `2 files`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def warn_unreadable(unreadable: list[tuple[Path, str]]) -> None:
    """Say how many files were left out, and name the first."""
    if unreadable:
        say(
            f"warning: {plural(len(unreadable), 'file')} cannot be read and "
            f"{'is' if len(unreadable) == 1 else 'are'} left out:"
        )
        for path, reason in unreadable[:NAMES_SHOWN]:
            say(f"  {path}: {reason}")
        if len(unreadable) > NAMES_SHOWN:
            say(f"  and {len(unreadable) - NAMES_SHOWN} more")


def by_scale(counts: dict[str, int]) -> str:
    """Count prototypes: `2000 at stride 8, 40 at image level`."""
    return ", ".join(f"{count} at {scale_title(name)}" for name, count in counts.items())


def warn_discarded(steps: SavedSteps) -> None:
    """Say that what an earlier training run had done is of no use to this one."""
    if steps.discarded:
        say(
            f"warning: {steps.folder} is of other images, settings, version or machine: starting over, "
            f"{plural(steps.discarded, 'finished step')} given up"
        )


def summarise_training(report: TrainReport, audited: Path | None) -> None:
    """Say what was learned, which normal images to look at, and what to type next."""
    for phase, (done, total) in report.reused.items():
        say(f"resumed: {phase}, {done} of {total} were done already")
    warn_unreadable(report.unreadable)
    _warn_copies(report)
    _warn_suspects(report, audited)
    model = report.model
    detector = model.detector
    memories = by_scale({name: len(detector.scale(name).memory.prototypes) for name in detector.scale_names})
    normals = model.calibration.normal_scores
    images, size = plural(model.provenance.images, "image"), model.config.image_size
    say(f"learned normal from {images} at {size} px with the {model.config.backbone} backbone")
    say(f"prototypes: {memories}")
    say(
        f"held-out normal images score {normals[0]:.2f} to {normals[-1]:.2f}, median {normals[len(normals) // 2]:.2f}; "
        "1 is the limit of normal (99 %)"
    )
    say(f"saved {report.model_path}; next: anomaly score DIR --out scores.csv")


def _warn_copies(report: TrainReport) -> None:
    if not report.copies:
        return
    told = f"{report.copies} of the {plural(report.model.provenance.images, 'normal image')} are copies or near-copies"
    if report.copies_together == report.copies:
        say(f"warning: {told} of others; they were kept together so that the calibration stays honest")
    else:
        say(f"warning: {told} of others, most of them of one image: p-values will be too small for other images")


def _warn_suspects(report: TrainReport, audited: Path | None) -> None:
    suspects, images = report.suspects, report.model.provenance.images
    if not suspects:
        return
    stands = "stands" if len(suspects) == 1 else "stand"
    say(
        f"warning: {len(suspects)} of the {plural(images, 'normal image')} {stands} out and shaped no memory; "
        f"if {'it is' if len(suspects) == 1 else 'they are'} not normal, take {'it' if len(suspects) == 1 else 'them'} "
        "out and train again:"
    )
    for path in suspects[:NAMES_SHOWN]:
        say(f"  {path}")
    where = "flagged in" if audited else "to see all: --audit-normals FILE"
    more = len(suspects) - NAMES_SHOWN
    if more > 0 or audited:
        say(f"  {f'and {more} more, ' if more > 0 else ''}{where}{f' {audited}' if audited else ''}")


def summarise_update(report: UpdateReport) -> None:
    """Say what was added, and what the model rests on now."""
    warn_unreadable(report.unreadable)
    provenance, normals = report.model.provenance, report.model.calibration.normal_scores
    added = [plural(report.normals, "normal image")]
    if report.anomalies:
        added.append(f"{report.anomalies} known anomalous")
    say(f"added {' and '.join(added)}; now {provenance.images} normal and {provenance.anomalies} known anomalous")
    held_out = plural(len(normals), "held-out normal image")
    say(f"calibrated on {held_out}, scores {normals[0]:.2f} to {normals[-1]:.2f}; 1 is the limit of normal (99 %)")
    say(f"saved {report.model_path}")


def summarise_audit(report: AuditReport, out: str) -> None:
    """Say how many images stand out, and what the table can and cannot tell."""
    readable = [row for row in report.rows if row.status == "ok"]
    say(
        f"{plural(len(report.rows), 'file')}: {len(report.flagged)} flagged (beyond the limit of the bulk), "
        f"{len(report.unreadable)} unreadable"
    )
    say(
        "without a normal folder this ranks how rare an image is among the others; "
        "for p- and q-values train on images that were looked at"
    )
    _list_worst(readable, report.unreadable)
    say(f"table: {out}")


def summarise_scores(report: ScoreReport, out: str) -> None:
    """Say how many files, how many flagged and what to expect of them, the verdict, the worst, where the table is."""
    verdict, rule = report.verdict, report.rule
    say(
        f"{plural(verdict.files, 'file')}: {verdict.flagged} flagged ({_in_words(rule)}){_expectation(verdict)}; "
        f"{verdict.unreadable} unreadable"
    )
    above = sum(1 for row in report.readable if row.score is not None and row.score >= 1)
    if rule.kind in (Rule.FDR, Rule.MAX_FALSE_ALARMS) and verdict.flagged < above:
        say(
            f"{above} score{'s' if above == 1 else ''} above the limit of normal: {verdict.normal_images} normal "
            f"images give p-values no smaller than {verdict.smallest_p:.2g}, too few to be sure at this rate; "
            "to flag them all the same use --threshold 1"
        )
    _judge_batch(verdict)
    _list_worst(report.readable, report.unreadable)
    if report.copies:
        say(f"{plural(len(report.copies), 'file')} are copies or near-copies of another (column duplicate_group)")
    say(f"table: {out}")


def _in_words(rule: FlagRule) -> str:
    words = {
        Rule.FDR: "false discovery rate {:g}",
        Rule.THRESHOLD: "score ≥ {:g}",
        Rule.TOP: "the {:g} most anomalous",
        Rule.MAX_FALSE_ALARMS: "at most {:g} false alarms expected",
    }
    return words[rule.kind].format(rule.value)


def _expectation(verdict: Verdict) -> str:
    if not verdict.flagged:
        return ""
    expected = round(verdict.expected_false_alarms)
    return f"; expect {f'about {expected}' if expected else 'fewer than 1'} of them to be normal"


def _judge_batch(verdict: Verdict) -> None:
    """Say how much of the batch is anomalous, and whether it is another batch altogether."""
    share, low, high = verdict.anomaly_share, verdict.anomaly_share_low, verdict.anomaly_share_high
    drift_scale, drift_p_value = verdict.drift_scale, verdict.drift_p_value
    if share is None or low is None or high is None or drift_scale is None or drift_p_value is None:
        say(
            f"too few to judge the batch as a whole: {plural(verdict.readable, 'readable image')} and "
            f"{plural(verdict.normal_images, 'normal image')}, {MIN_BATCH} of each are needed"
        )
        return
    say(f"about {100 * share:.0f} % of the batch is anomalous (95 %: {100 * low:.0f} to {100 * high:.0f} %)")
    if verdict.drift:
        say(
            "warning: the batch as a whole differs from the normal images (drift, "
            f"{_p_in_words(drift_p_value)}, mostly at {scale_title(drift_scale)}): {_why_drifted(verdict)}? "
            "The figures above hold for new images from the same source only"
        )


def _why_drifted(verdict: Verdict) -> str:
    if verdict.drift_nearer:
        return "nearer than new images can be; was the model trained on these, or are they blurred"
    return "another camera, light, focus or compression"


def _p_in_words(p: float) -> str:
    return f"p = {p:.1g}" if p >= 1e-4 else "p < 0.0001"


def _list_worst(readable: list[Row], unreadable: list[Row]) -> None:
    for row in readable[:WORST_SHOWN]:
        say(f"  {row.score:8.2f}  {row.path}")
    for row in unreadable[:NAMES_SHOWN]:
        say(f"  unreadable  {row.path}: {row.reason}")
    if len(unreadable) > NAMES_SHOWN:
        say(f"  and {len(unreadable) - NAMES_SHOWN} more unreadable")


def describe_model(path: Path, header: dict[str, Any]) -> Iterator[str]:
    """Describe a model file, a line each, for `anomaly info`."""
    provenance, config, normals = header["provenance"], header["config"], header["normal_scores"]
    yield f"model         {path}, format {header['format']}"
    yield f"trained       {provenance['created']}"
    known = f"{provenance['anomalies']} known anomalous"
    yield f"on            {plural(provenance['images'], 'normal image')}, {known}"
    suspects = f"{provenance['suspects']} that stood out"
    yield f"left out      {plural(provenance['unreadable'], 'unreadable file')}, {suspects}"
    yield f"training set  sha256 {provenance['training_set']}"
    yield f"settings      {', '.join(f'{name} {value}' for name, value in config.items())}"
    yield f"versions      {', '.join(f'{name} {value}' for name, value in provenance['versions'].items())}"
    for name, memory in header["memory"].items():
        yield f"{scale_title(name):<13} {plural(memory['prototypes'], 'prototype')} of {memory['channels']} channels"
    size = header["thumbnails"]
    yield f"thumbnails    {f'of every prototype, {size / 1e3:.0f} kB' if size else 'none'}"
    yield f"calibration   {plural(len(normals), 'held-out normal image')}, scores {normals[0]:.3f} to {normals[-1]:.3f}"
    yield f"p-values      no smaller than {1 / (len(normals) + 1):.2g}"


def summarise_evaluation(evaluation: Evaluation) -> None:
    """Say what was compared, every figure with its interval, and what the flags of the table are worth."""
    normal, anomalous = evaluation.normal, evaluation.anomalous
    say(f"{plural(normal + anomalous, 'labelled image')}: {normal} normal, {anomalous} anomalous")
    for count, noun, what in (
        (evaluation.unreadable, "file", " unreadable, in no figure"),
        (evaluation.unlabelled, "file", " without a label, in no figure"),
        (evaluation.unused, "label", " without a file in the table"),
        (evaluation.without_mask or 0, "anomalous image", " without a mask, in no figure of the maps"),
    ):
        if count:
            say(f"{plural(count, noun)}{what}")
    say(f"{'':<28}value   95 % interval")
    for name, figure in evaluation.figures.items():
        words = FIGURES_IN_WORDS.get(name, name.replace("_", " "))
        say(f"{words:<28}{figure.value:.3f}   {figure.low:.3f} to {figure.high:.3f}")
    if any(figure.low == figure.high for figure in evaluation.figures.values()):
        say(
            "an interval of one value says that drawing the images anew changed nothing, not that the figure is certain"
        )
    _judge_flags(evaluation)


def _judge_flags(evaluation: Evaluation) -> None:
    """Say how many of the flagged are anomalous, how many anomalies are missed, how many alarms are false."""
    found = evaluation.confusion
    hits, alarms = found.flagged_anomalous, found.flagged_normal
    if found.precision is None:
        say("the table flags none of them")
        return
    missed = found.missed_anomalous
    say(f"of {hits + alarms} flagged, {hits} anomalous: {_in_percent(found.precision)}")
    say(f"of {evaluation.anomalous} anomalous, {hits} flagged: {_in_percent(found.recall)}; {missed} missed")
    say(f"of {evaluation.normal} normal, {alarms} flagged: {_in_percent(found.false_alarms)}")


def _in_percent(share: Figure) -> str:
    return f"{100 * share.value:.0f} % (95 %: {100 * share.low:.0f} to {100 * share.high:.0f} %)"


def summarise_heatmaps(report: HeatmapReport, out: Path) -> None:
    """Say how many overlays were drawn and where."""
    warn_unreadable(report.unreadable)
    say(f"{plural(len(report.written), 'overlay')} in {out}")


def summarise_page(report: PageReport, out: Path) -> None:
    """Say what the page shows, what it leaves out and how large it is."""
    gone = len(report.missing)
    if gone:
        say(
            f"warning: {plural(gone, 'image')} of the table cannot be read any more, "
            f"shown as missing, first {report.missing[0][0]}: {report.missing[0][1]}"
        )
    if report.changed:
        scores = "scores" if report.changed == 1 else "score"
        say(
            f"warning: {plural(report.changed, 'image')} {scores} differently now: "
            "is this the model that made the table, and are these the files?"
        )
    if not report.has_model:
        say("no p-values in this table: the page has no heat maps, no expected false alarms and no verdict")
    without = f", {report.left_out} more listed without (--top)" if report.left_out else ""
    pictures = plural(report.pictured, "picture")
    say(f"{plural(report.files, 'file')}: {pictures}{without}; {report.unreadable} unreadable")
    say(f"page: {out}, {report.size / 1e6:.1f} MB")
