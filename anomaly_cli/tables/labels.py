"""Labels of images, read from a table or folder names and matched with paths; opens no image."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from anomaly_cli.errors import InputError
from anomaly_cli.tables.reader import file_of, open_records

FOLDERS = "folders"  # instead of a file: the name of its folder labels an image
NORMAL_FOLDERS = ("good", "normal")
NORMAL_WORDS = ("normal", "good", "0", "0.0")  # a column of numbers with gaps becomes one of fractions
ANOMALOUS_WORDS = ("anomalous", "anomaly", "abnormal", "defect", "defective", "bad", "1", "1.0")
ANOMALOUS = dict.fromkeys(NORMAL_WORDS, False) | dict.fromkeys(ANOMALOUS_WORDS, True)  # by label


@dataclass(frozen=True)
class MatchedLabels:
    """Paths and their labels.

    Attributes:
        anomalous: label of each path that has one, by the path as given.
        unlabelled: paths without a label.
        unused: labels of files that are none of the paths.
    """

    anomalous: dict[str, bool]
    unlabelled: list[str]
    unused: int


def label_paths(labels: str, paths: Sequence[str]) -> MatchedLabels:
    """Label paths by a file of labels, or by their folders.

    Args:
        labels: a file of `path` and `label`, or the word `folders`.
        paths: as a table has them.

    Raises:
        InputError: the labels cannot be read, contradict each other or fit none of the paths.
    """
    if labels == FOLDERS:
        return MatchedLabels({path: Path(path).parent.name.lower() not in NORMAL_FOLDERS for path in paths}, [], 0)
    table = Path(labels)
    known = read_labels(table)
    by_file = _by_file(known, table)
    anomalous: dict[str, bool] = {}
    used: set[str] = set()
    for path in paths:
        file = os.path.realpath(path)
        if path in known:
            anomalous[path] = known[path]
        elif file in by_file:
            anomalous[path] = by_file[file]
        else:
            continue
        used |= {path, file}
    if not anomalous:
        if not known:
            raise InputError(f"{labels} holds no label")
        raise InputError(
            f"{labels}: none of its labels, such as that of {next(iter(known))}, is of a file in the table, such as "
            f"{paths[0]}; paths count from the current folder or from that of the labels"
        )
    unused = sum(1 for path in known if not used & {path, os.path.realpath(file_of(path, table))})
    return MatchedLabels(anomalous, [path for path in paths if path not in anomalous], unused)


def read_labels(table: Path) -> dict[str, bool]:
    """Read whether each path of a table is anomalous; rows with an empty label are left out.

    Args:
        table: CSV, TSV, JSON Lines or Parquet with the columns `path` and `label`; others do not matter.

    Raises:
        InputError: the file cannot be read, has no such columns, an unknown label, or two for one path.
    """
    known: dict[str, bool] = {}
    with open_records(table, "a table of labels") as source:
        for number, record in enumerate(source.records(("path", "label")), start=1):
            path, label = str(record["path"]), record["label"]
            if label is None or label == "" or label != label:
                continue
            anomalous = ANOMALOUS.get(str(label).strip().lower())
            if anomalous is None:
                raise ValueError(f"row {number}, {path}, has the label {label}, not normal or anomalous")
            if known.setdefault(path, anomalous) is not anomalous:
                raise ValueError(f"{path} is labelled both normal and anomalous")
    return known


def labelled_files(table: Path) -> tuple[list[Path], list[Path]]:
    """List the normal and the anomalous files of a table of labels, each once, in the order of the table.

    Raises:
        InputError: as of `read_labels`; or the table holds no label.
    """
    known = read_labels(table)
    if not known:
        raise InputError(f"{table} holds no label")
    by_file = _by_file(known, table)
    files: dict[str, Path] = {}
    for path in known:
        file = file_of(path, table)
        files.setdefault(os.path.realpath(file), file)
    normal = [path for file, path in files.items() if not by_file[file]]
    return normal, [path for file, path in files.items() if by_file[file]]


def _by_file(known: dict[str, bool], table: Path) -> dict[str, bool]:
    """Find labels by the files that their paths may mean.

    Raises:
        InputError: two names of one file are labelled differently.
    """
    by_file: dict[str, bool] = {}
    for path, anomalous in known.items():
        file = os.path.realpath(file_of(path, table))
        if by_file.setdefault(file, anomalous) is not anomalous:
            raise InputError(f"{table} labels {file} both normal and anomalous")
    return by_file
