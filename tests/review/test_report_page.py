"""`anomaly report`: one self-contained file with the table, the pictures and the verdict; what it refuses."""

from __future__ import annotations

import base64
import html.parser
import io
import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from command_line import anomaly, rows_of, start, stop_at_the_rename
from PIL import Image

from anomaly_cli.review.report_page import ASSETS


@pytest.fixture
def scored(here: Path) -> Path:
    """The shared images with one broken file among them, and their table."""
    shutil.copytree("incoming", "batch")
    Path("batch/torn.png").write_text("no picture")
    assert anomaly("score", "batch", "-q").exit_code == 0
    return here


class _Elements(html.parser.HTMLParser):
    """Collects the data elements of a page and every address in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.data: dict[str, Any] = {}
        self.addresses: list[str] = []
        self.scripts = 0
        self._name: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action", "data")]
        self._name = known.get("id") if known.get("type") == "application/json" else None
        self.scripts += tag == "script" and self._name is None

    def handle_data(self, data: str) -> None:
        if self._name is not None:
            self.data[self._name] = json.loads(data)
            self._name = None


def read_page(path: str = "report.html") -> _Elements:
    elements = _Elements()
    elements.feed(Path(path).read_text("utf-8"))
    return elements


def picture_of(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def test_the_page_holds_the_table_the_verdict_and_a_thumbnail_per_image(scored: Path) -> None:
    result = anomaly("report", "scores.csv")

    page = read_page()
    data = page.data["data"]
    rows = [dict(zip(data["columns"], row, strict=True)) for row in data["rows"]]
    assert (result.exit_code, result.stdout) == (0, "")
    assert len(rows) == 9
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
    assert data["unreadable"] == [["batch/torn.png", "not an image"]]
    assert data["verdict"]["files"] == 10
    assert data["scales"] == ["4", "8", "16", "image", "coarse"]
    assert len(data["normals"]) == 12
    for i in range(9):
        with picture_of(page.data[f"picture-{i}"]["image"]) as picture:
            assert picture.format == "WEBP"
            assert picture.size == (rows[i]["width"], rows[i]["height"])


def test_the_summary_counts_and_says_how_large_the_file_is(scored: Path) -> None:
    result = anomaly("report", "scores.csv", "--out", "page.html")

    size = Path("page.html").stat().st_size
    assert result.stderr.splitlines()[-2:] == [
        "10 files: 9 pictures; 1 unreadable",
        f"page: page.html, {size / 1e6:.1f} MB",
    ]


def test_an_anomalous_image_has_a_map_and_evidence(scored: Path) -> None:
    anomaly("report", "scores.csv", "-q")

    first = read_page().data["picture-0"]
    h, w = first["cells"]
    assert len(base64.b64decode(first["heat"])) == h * w
    assert set(first["evidence"]) == {"anomalous", "normal", "scale"}
    for side in ("anomalous", "normal"):
        with picture_of(first["evidence"][side]) as picture:
            assert min(picture.size) > 10


def test_the_regions_of_the_page_are_those_of_the_table_of_regions(scored: Path) -> None:
    options = ["--region-threshold", "0.9", "--min-area", "100"]
    assert anomaly("score", "batch", "--regions", "regions.csv", "-q", *options).exit_code == 0
    assert anomaly("report", "scores.csv", "-q", *options).exit_code == 0

    page = read_page().data
    rows = page["data"]["rows"]
    shown = [
        [rows[i][0], str(number), *map(str, region)]
        for i in range(len(rows))
        for number, region in enumerate(page[f"picture-{i}"]["regions"], start=1)
    ]
    expected = rows_of(Path("regions.csv").read_bytes())
    names = ("path", "region", "x", "y", "w", "h", "area", "peak", "scale")
    assert shown == [[row[name] for name in names] for row in expected]
    assert (page["data"]["regionThreshold"], page["data"]["minArea"]) == (0.9, 100)


def test_the_page_names_no_address_at_all_and_forbids_requests(scored: Path) -> None:
    anomaly("report", "scores.csv", "-q")

    text = Path("report.html").read_text("utf-8")
    assert read_page().addresses == []
    assert "default-src 'none'" in text
    assert set(re.findall(r"https?://[^\"' )]*", text)) <= {"http://www.w3.org/2000/svg"}


def test_markup_in_names_and_reasons_ends_no_element(scored: Path) -> None:
    table = Path("scores.csv").read_text("utf-8")
    harmful = "batch/</script><script>alert(1)</script><!--.png"
    Path("scores.csv").write_text(table.replace("batch/good0.png", harmful).replace("not an image", "<b>&amp;"))

    anomaly("report", "scores.csv", "-q")

    page = read_page()
    assert page.scripts == 1
    assert harmful in [row[0] for row in page.data["data"]["rows"]]
    assert page.data["data"]["unreadable"][0][1] == "<b>&amp;"


def test_what_is_filled_in_is_never_a_place_to_fill(scored: Path) -> None:
    table = Path("scores.csv").read_text("utf-8")
    Path("scores.csv").write_text(table.replace("batch/good0.png", "{{ script }}{{ pictures }}.png"))

    anomaly("report", "scores.csv", "-q")

    names = [row[0] for row in read_page().data["data"]["rows"]]
    assert "{{ script }}{{ pictures }}.png" in names


def test_top_limits_the_pictures_and_says_so(scored: Path) -> None:
    result = anomaly("report", "scores.csv", "--top", "2")

    page = read_page()
    assert [name for name in page.data if name.startswith("picture")] == ["picture-0", "picture-1"]
    assert len(page.data["data"]["rows"]) == 9
    assert "10 files: 2 pictures, 7 more listed without (--top); 1 unreadable" in result.stderr


def test_without_pictures_no_file_need_be_there(scored: Path) -> None:
    shutil.rmtree("batch")

    result = anomaly("report", "scores.csv", "--top", "0", "-q")

    assert (result.exit_code, result.stderr) == (0, "")
    assert len(read_page().data["data"]["rows"]) == 9


def test_links_lead_to_the_files_beside_the_table(scored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("pages").mkdir()
    monkeypatch.chdir("pages")

    result = anomaly("report", "../scores.csv", "--model", "../anomaly.safetensors", "--top", "1", "-q")

    data = read_page().data["data"]
    assert result.exit_code == 0, result.stderr
    assert Path(data["root"], data["rows"][0][data["columns"].index("path")]).is_file()


def test_images_that_are_gone_or_changed_are_named(scored: Path) -> None:
    Path("batch/good1.png").unlink()
    shutil.copy("batch/bad0.jpg", "batch/good2.png")

    result = anomaly("report", "scores.csv")

    assert result.exit_code == 0
    assert result.stderr.splitlines()[:2] == [
        "warning: 1 image of the table cannot be read any more, shown as missing, first batch/good1.png: no such file",
        "warning: 1 image scores differently now: is this the model that made the table, and are these the files?",
    ]


@pytest.mark.parametrize("suffix", ["tsv", "jsonl", "parquet"])
def test_every_format_gives_the_same_page(scored: Path, suffix: str) -> None:
    anomaly("score", "batch", "-q", "--out", f"scores.{suffix}")

    for table in ("scores.csv", f"scores.{suffix}"):
        assert anomaly("report", table, "-q", "--out", f"{table}.html").exit_code == 0

    pages = [read_page(f"{table}.html").data for table in ("scores.csv", f"scores.{suffix}")]
    for page in pages:
        for differs in ("digest", "table"):
            page["data"].pop(differs)
    assert pages[0] == pages[1]


def test_a_table_of_audit_needs_no_model(scored: Path) -> None:
    Path("anomaly.safetensors").unlink()
    assert anomaly("audit", "batch", "normal", "--image-size", "64", "--prototypes", "50", "-q").exit_code == 0

    result = anomaly("report", "audit.csv")

    data = read_page().data["data"]
    assert result.exit_code == 0
    assert result.stderr.splitlines()[0] == (
        "no p-values in this table: the page has no heat maps, no expected false alarms and no verdict"
    )
    assert (data["model"], data["verdict"], data["normals"]) == (None, None, [])


def test_a_killed_run_leaves_the_old_page(scored: Path) -> None:
    old = "<title>anomaly report</title>"
    Path("report.html").write_text(old)

    running = start("report", "scores.csv", hook=stop_at_the_rename)
    running.wait_until_reached()
    running.send(signal.SIGKILL)
    running.exit_code()

    assert Path("report.html").read_text() == old


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["gone.csv"], "cannot read gone.csv: No such file or directory", 1),
        (["empty.csv"], "empty.csv lists no file", 1),
        (["words.csv"], "words.csv is not a table of `anomaly score`: column 'path' is missing", 1),
        (["scores.csv", "--out", "no/r.html"], "cannot write no/r.html: no such folder: no", 1),
        (
            ["scores.csv", "--model", "no.safetensors"],
            "no model file at no.safetensors: make one with `anomaly train NORMAL_DIR`",
            1,
        ),
    ],
)
def test_what_the_user_can_fix_is_one_line(scored: Path, arguments: list[str], message: str, code: int) -> None:
    Path("empty.csv").write_text("path,score,flagged,status,reason\n")
    Path("words.csv").write_text("some words\n")

    result = anomaly("report", *arguments)

    assert (result.stderr, result.stdout, result.exit_code) == (f"error: {message}\n", "", code)
    assert not Path("report.html").exists()


def test_the_template_lies_in_files_of_its_own() -> None:
    assert {part.name for part in ASSETS.iterdir()} >= {"page.html", "page.css", "page.js"}
