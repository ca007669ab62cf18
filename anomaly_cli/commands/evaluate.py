"""`anomaly evaluate`: compare a table with labels and print every figure with its interval."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anomaly_cli.commands import console
from anomaly_cli.commands.console import plural, print_stderr
from anomaly_cli.commands.options import Device, ModelFile, NewRoi, Quiet
from anomaly_cli.commands.report import STDOUT
from anomaly_cli.outputs import Kind, Output, check_outputs

if TYPE_CHECKING:
    from anomaly_cli.review.evaluation import Evaluation
    from anomaly_cli.statistics.interval import Interval


FIGURES_IN_WORDS = {
    "image_auroc": "image AUROC",
    "f1_max": "best F1 of any threshold",
    "fpr_at_95_recall": "false alarms at 95 % recall",
    "pixel_auroc": "pixel AUROC",
    "aupro": "AUPRO up to FPR 0.3",
}


def summarise_evaluation(evaluation: Evaluation) -> None:
    """Print what was compared, every figure with its interval, and how good the flags are."""
    normal, anomalous = evaluation.normal, evaluation.anomalous
    print_stderr(f"{plural(normal + anomalous, 'labelled image')}: {normal} normal, {anomalous} anomalous")
    for count, noun, what in (
        (evaluation.unreadable, "file", " unreadable, in no figure"),
        (evaluation.unlabelled, "file", " without a label, in no figure"),
        (evaluation.unused, "label", " without a file in the table"),
        (evaluation.without_mask or 0, "anomalous image", " without a mask, in no figure of the maps"),
    ):
        if count:
            print_stderr(f"{plural(count, noun)}{what}")
    print_stderr(f"{'':<28}value   95 % interval")
    for name, figure in evaluation.figures.items():
        words = FIGURES_IN_WORDS.get(name, name.replace("_", " "))
        print_stderr(f"{words:<28}{figure.value:.3f}   {figure.low:.3f} to {figure.high:.3f}")
    if any(figure.low == figure.high for figure in evaluation.figures.values()):
        print_stderr("an interval of one value means that no resample changed the figure, not that it is certain")
    _judge_flags(evaluation)


def _judge_flags(evaluation: Evaluation) -> None:
    """Print precision, recall and the rate of false alarms of the flags."""
    found = evaluation.confusion
    hits, alarms = found.flagged_anomalous, found.flagged_normal
    if found.precision is None:
        print_stderr("the table flags none of them")
        return
    missed = found.missed_anomalous
    print_stderr(f"of {hits + alarms} flagged, {hits} anomalous: {_in_percent(found.precision)}")
    print_stderr(f"of {evaluation.anomalous} anomalous, {hits} flagged: {_in_percent(found.recall)}; {missed} missed")
    print_stderr(f"of {evaluation.normal} normal, {alarms} flagged: {_in_percent(found.false_alarms)}")


def _in_percent(share: Interval) -> str:
    return f"{100 * share.value:.0f} % (95 %: {100 * share.low:.0f} to {100 * share.high:.0f} %)"


def evaluate(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="Table of `score` or `audit`; - for stdin.")],
    labels: Annotated[
        str,
        typer.Option(
            metavar="FILE|folders",
            help="Table with the columns path and label (normal or anomalous), such as the review page exports; or "
            "the word folders: images in folders called good or normal are normal, all others anomalous.",
        ),
    ],
    masks: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Masks named like the images, white where anomalous: evaluates the anomaly maps, too."
        ),
    ] = None,
    model: ModelFile = Path("anomaly.safetensors"),
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE|-", help="Also write the figures as JSON; - for stdout.")
    ] = None,
    curves: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also draw ROC, precision and recall, and the scores: .png, .pdf or .svg."),
    ] = None,
    roi: NewRoi = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Compare a table with labels: how good are its ranking and its flags."""
    target = None if out == STDOUT else out
    outputs = [Output("--out", target, Kind.EVALUATION), Output("--curves", curves, Kind.PICTURE)]
    check_outputs(outputs, [table, Path(labels), model])
    from anomaly_cli.review import evaluation

    with console.progress(quiet) as progress:
        result = evaluation.evaluate(
            table, labels, masks=masks, model_path=model, roi=roi, curves=curves, device=device, progress=progress
        )
    if out is not None:
        evaluation.write_evaluation(result, target)
    if not quiet:
        summarise_evaluation(result)
