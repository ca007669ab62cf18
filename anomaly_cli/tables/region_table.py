"""The second table of `score`: one row a region, most anomalous image first; also as COCO JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anomaly_cli.errors import ConfigError
from anomaly_cli.files import write_bytes
from anomaly_cli.outputs import CREATOR, Kind
from anomaly_cli.tables.formats import TableFormat, format_of
from anomaly_cli.tables.row import RegionRow, Row, Value, rank_rows, rounded
from anomaly_cli.tables.writer import Records

COCO_SUFFIX = ".coco.json"
OWN = ("x", "y", "w", "h", "area", "area_fraction", "peak", "mean", "scale")
COLUMNS = ("path", "region", *OWN)
CATEGORY = {"id": 1, "name": "anomaly", "supercategory": ""}


@dataclass(frozen=True)
class RegionTable(Records):
    """The regions of one run.

    Attributes:
        rows: of the files, with their regions, in any order.
    """

    rows: Sequence[Row]

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(COLUMNS)

    def records(self) -> Iterator[dict[str, Value]]:
        """Records of all regions: those of the most anomalous image first, by falling peak."""
        for row in rank_rows(self.rows):
            yield from region_records(row)

    def to_coco(self) -> bytes:
        """Write all readable images and their regions as one COCO object-detection document.

        `bbox` is x, y, width, height in pixels, `segmentation` a list of polygons, `score` the peak of the region, and
        of an image its score. Bytes of a name that is not UTF-8 are escapes, as in the table.
        """
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for row in rank_rows(self.rows):
            if row.score is None:
                continue
            size = {"width": row.width, "height": row.height}
            images.append({"id": len(images) + 1, "file_name": row.path, **size, "score": rounded(row.score)})
            for region in row.region_list:
                annotation = {"id": len(annotations) + 1, "image_id": len(images), "category_id": CATEGORY["id"]}
                annotations.append(annotation | _annotation(region))
        document = {
            "info": {"description": "regions of anomaly score; score 1 is the limit of normal", "contributor": CREATOR},
            "licenses": [],
            "categories": [CATEGORY],
            "images": images,
            "annotations": annotations,
        }
        return json.dumps(document).encode() + b"\n"


def region_records(row: Row) -> Iterator[dict[str, Value]]:
    """Records of the regions of one file, highest peak first, numbers rounded to six significant digits."""
    for number, region in enumerate(row.region_list, start=1):
        known: dict[str, Value] = {"path": row.path, "region": number}
        known |= {name: getattr(region, name) for name in OWN}
        yield {name: rounded(value) if isinstance(value, float) else value for name, value in known.items()}


def _annotation(region: RegionRow) -> dict[str, Any]:
    return {
        "bbox": [region.x, region.y, region.w, region.h],
        "area": region.area,
        "segmentation": region.outline,
        "iscrowd": 0,
        "score": rounded(region.peak),
        "scale": region.scale,
    }


@dataclass(frozen=True)
class RegionFile:
    """Where the regions go.

    Attributes:
        path: None for stdout.
        format: None for COCO.
    """

    path: Path | None
    format: TableFormat | None

    @classmethod
    def of(cls, path: Path | None) -> RegionFile:
        """Choose the format by the suffix; stdout and names without one are CSV.

        Raises:
            ConfigError: the suffix is of no format.
            OutputError: parquet was asked for and pyarrow is missing.
        """
        name = "" if path is None else path.name.lower()
        if name.endswith(f"{COCO_SUFFIX}.gz"):
            raise ConfigError(f"{path}: labelling tools read plain COCO files, leave out .gz")
        return cls(path, None if name.endswith(COCO_SUFFIX) else format_of(path, None, "--regions"))

    @property
    def kind(self) -> Kind:
        """What the file is."""
        return Kind.COCO if self.format is None else Kind.REGIONS

    def write(self, rows: Sequence[Row]) -> None:
        """Write the regions of all files.

        Raises:
            OutputError: the file cannot be written.
            BrokenPipeError: the reader of stdout went away.
        """
        table = RegionTable(rows)
        if self.format is None:
            write_bytes(table.to_coco(), self.path)
        else:
            table.write(self.path, self.format)
