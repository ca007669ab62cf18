"""The review page in a real browser: what a reviewer does, and that it sends no request."""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import anomaly, rows_of

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'anomaly-cli[browser]'")

CHROMIUM = os.environ.get("ANOMALY_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
ODD = 'incoming/<script>alert(1)</script>, "x".png'
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def report(here: Path) -> Path:
    """Page of a batch with a name full of markup, a name that is not UTF-8, a copy and a broken file."""
    shutil.copytree("incoming", "copied")
    (here / "incoming").unlink()
    (here / "copied").rename("incoming")
    slash = ODD.replace("/script", "\u2215script")  # no file name holds a slash
    shutil.copy("incoming/bad0.jpg", slash)
    shutil.copy("incoming/good0.png", os.fsdecode(b"incoming/caf\xe9.png"))
    Path("incoming/torn.png").write_text("no picture")
    for command in (["score", "incoming", "--threshold", "1"], ["report", "scores.csv"]):
        assert anomaly(*command, "-q").exit_code == 0
    return here / "report.html"


class Opened:
    """An open page with its requests and console messages."""

    def __init__(self, browser: Any, report: Path, **settings: Any) -> None:
        self.context = browser.new_context(accept_downloads=True, **settings)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.goto(report.as_uri())

    def names(self) -> list[str]:
        """Names of the images in the order shown."""
        return [path.rsplit("/", 1)[-1] for path in self.page.locator("#gallery .path").all_inner_texts()]

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def labels(self) -> bytes:
        """Export the decisions."""
        with self.page.expect_download() as download:
            self.page.click("#export")
        return Path(download.value.path()).read_bytes()


@pytest.fixture
def opened(browser: Any, report: Path) -> Iterator[Opened]:
    page = Opened(browser, report)
    yield page
    page.context.close()


def test_nothing_is_requested_but_the_page_and_the_browser_complains_of_nothing(opened: Opened, report: Path) -> None:
    opened.press("j", "y", "o", "?")
    opened.page.click("text=Close")
    opened.page.click("#tab-unreadable")

    outside = [url for url in opened.requests if not url.startswith(("data:", "blob:"))]
    assert outside == [report.as_uri()]
    assert opened.complaints == []


def test_markup_in_a_name_is_text(opened: Opened) -> None:
    assert '<script>alert(1)<\u2215script>, "x".png' in opened.names()
    assert opened.complaints == []


def test_search_filter_and_order(opened: Opened) -> None:
    page = opened.page
    everything = opened.names()
    assert len(everything) == 11

    page.fill("#search", "GOOD")
    assert len(opened.names()) == 6
    assert page.inner_text("#shown") == "6 files of 11"

    page.fill("#search", "nowhere")
    assert page.inner_text("#shown") == "No image matches."

    page.fill("#search", "")
    page.select_option("#filter", "above")
    flagged = opened.names()
    assert 0 < len(flagged) < 11
    page.select_option("#filter", "below")
    assert sorted(flagged + opened.names()) == sorted(everything)

    page.select_option("#filter", "all")
    page.select_option("#sort", "path")
    assert opened.names()[0].startswith("<script>")
    page.click("#direction")
    assert opened.names()[-1].startswith("<script>")


def test_moving_the_threshold_updates_the_counts_and_the_expectation(opened: Opened) -> None:
    page = opened.page
    before = page.inner_text("#counted")

    page.fill("#threshold", "0.01")
    everything = page.inner_text("#counted")
    page.focus("#distribution .threshold")
    page.fill("#threshold", "99")
    nothing = page.inner_text("#counted")
    page.click("#reset")

    assert everything.startswith("11 of 11 files; expect about ")
    assert nothing == "0 of 11 files"
    assert page.inner_text("#counted") == before
    sync_api.expect(page.locator(".pill.hot")).to_have_count(int(before.split()[0]))


def test_the_threshold_is_dragged_and_moved_by_arrow_keys(opened: Opened) -> None:
    page = opened.page
    threshold = page.locator("#distribution .threshold")
    start = float(threshold.get_attribute("aria-valuenow"))
    before = int(page.inner_text("#counted").split()[0])

    threshold.focus()
    opened.press("ArrowRight", "ArrowRight")
    assert float(threshold.get_attribute("aria-valuenow")) == pytest.approx(start + 0.02)

    box = page.locator("#distribution svg").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 20, box["y"] + 60)
    page.mouse.up()
    assert float(threshold.get_attribute("aria-valuenow")) < start
    assert int(page.inner_text("#counted").split()[0]) > before


def test_keys_decide_the_export_is_a_table_of_labels_and_a_reload_keeps_them(opened: Opened) -> None:
    page = opened.page
    first, second, third = opened.names()[:3]

    opened.press("j", "n", "n", "y")
    exported = opened.labels()
    page.reload()

    rows = list(csv.DictReader(io.StringIO(exported.decode("utf-8", "surrogateescape"))))
    assert [(Path(row["path"]).name, row["label"]) for row in rows] == [
        (first, "anomalous"),
        (second, "anomalous"),
        (third, "normal"),
    ]
    assert page.inner_text("#progress") == "3 of 11 decided"
    assert opened.labels() == exported
    sync_api.expect(page.locator('.card .anomalous[aria-pressed="true"]')).to_have_count(2)

    opened.press("k", "u")
    assert opened.complaints == []


def test_every_region_is_framed_and_listed_and_decided_on_alone(opened: Opened) -> None:
    page = opened.page
    assert anomaly("score", "incoming", "--out", "again.csv", "--regions", "regions.csv", "-q").exit_code == 0
    regions = rows_of(Path("regions.csv").read_bytes())
    first = page.locator(".card").first
    path = first.locator(".path").get_attribute("title")
    own = [region for region in regions if region["path"] == path]
    first.locator(".chip").first.wait_for()
    assert first.locator(".chip").count() == first.locator(".region").count() == len(own)

    opened.press("j", "r", "n")  # the first region of the first image
    first.locator(".chip").first.focus()
    first.locator(".chip").first.click()  # from anomalous to normal
    with page.expect_download() as download:
        page.click("#export-regions")

    assert download.value.suggested_filename == "region_labels.csv"
    (row,) = rows_of(Path(download.value.path()).read_bytes())
    names = ("path", "region", "x", "y", "w", "h", "area", "peak", "scale")
    assert [row[name] for name in names] == [own[0][name] for name in names]
    assert row["label"] == "normal"
    assert page.inner_text("#progress") == "1 region decided"
    page.reload()
    sync_api.expect(page.locator(".region.normal")).to_have_count(1)
    assert opened.complaints == []


def test_a_decision_on_a_region_is_undone_and_leaves_the_image_undecided(opened: Opened) -> None:
    page = opened.page
    page.locator(".card").first.locator(".chip").first.wait_for()

    opened.press("j", "r", "y")
    decided = page.inner_text("#progress")
    opened.press("u")

    assert decided == "1 region decided"
    assert page.inner_text("#progress") == ""
    assert page.locator("#export-regions").is_hidden()
    assert page.locator("#export").is_disabled()
    assert page.locator(".card [aria-pressed=true].normal").count() == 0


def test_exported_labels_are_what_evaluate_reads_whatever_the_names(opened: Opened) -> None:
    for i, name in enumerate(opened.names()):
        bad = "bad" in name or "script" in name
        opened.page.locator(".card").nth(i).locator(".anomalous" if bad else ".normal").click()
    Path("labels.csv").write_bytes(opened.labels())

    result = anomaly("evaluate", "scores.csv", "--labels", "labels.csv")

    assert result.exit_code == 0, result.stderr
    assert result.stderr.splitlines()[:2] == [
        "11 labelled images: 7 normal, 4 anomalous",
        "1 file unreadable, in no figure",
    ]


def test_undo_takes_the_last_decision_back(opened: Opened) -> None:
    opened.press("j", "n", "y", "u")

    assert opened.page.inner_text("#progress") == "1 of 11 decided"


def test_the_heat_map_is_turned_off_for_one_image_and_for_all(opened: Opened) -> None:
    first, second = (opened.page.locator(".card").nth(i).locator("canvas") for i in range(2))
    second.wait_for()  # the pictures of a card come once its own is decoded

    opened.press("j", "o")
    sync_api.expect(first).to_be_hidden()
    sync_api.expect(second).to_be_visible()
    opened.press("Shift+O")
    sync_api.expect(opened.page.locator("canvas:visible")).to_have_count(0)
    opened.press("Shift+O")
    sync_api.expect(first).to_be_visible()
    sync_api.expect(second).to_be_visible()


def test_the_most_anomalous_patch_is_beside_the_nearest_normal_one(opened: Opened) -> None:
    first = opened.page.locator(".card").first
    first.locator(".evidence img").nth(1).wait_for()  # the pictures of a card come once its own is decoded

    assert first.locator(".evidence img").count() == 2
    assert first.locator(".evidence").inner_text().split("\n") == ["anomalous patch", "nearest normal"]
    assert all(first.locator(".evidence img").nth(i).evaluate("e => e.naturalWidth") > 20 for i in range(2))


def test_copies_and_unreadable_files_have_their_own_sections(opened: Opened) -> None:
    page = opened.page

    page.click("#tab-copies")
    groups = page.locator("#copies .group").all_inner_texts()
    page.click("#tab-unreadable")

    assert len(groups) == 2
    assert all("2 files with the same content" in group for group in groups)
    assert "bad0.jpg" in "".join(groups)
    assert page.inner_text("#unreadable tbody").split("\t") == ["incoming/torn.png", "not an image"]
    assert page.locator("#images").is_hidden()


def test_the_page_fits_a_phone_and_follows_the_dark_theme(browser: Any, report: Path) -> None:
    phone = Opened(browser, report, viewport={"width": 390, "height": 844}, color_scheme="dark")

    width = phone.page.evaluate("document.documentElement.scrollWidth")
    background = phone.page.evaluate("getComputedStyle(document.body).backgroundColor")
    phone.page.click("#theme")
    light = phone.page.evaluate("getComputedStyle(document.body).backgroundColor")

    assert width <= 390
    assert background != light
    assert sum(int(value) for value in background.strip("rgb()").split(",")) < 150
    phone.context.close()


def test_twenty_thousand_files_open_and_only_visible_cards_exist(browser: Any, here: Path) -> None:
    header = "path,score,p_value,flagged,status,reason,scale_8,scale_16,scale_image\n"
    lines = [f"far/{i:05}.png,{3 - i / 10000},{(i + 1) / 20001},false,ok,,1,1,1\n" for i in range(20_000)]
    Path("many.csv").write_text(header + "".join(lines))
    result = anomaly("report", "many.csv", "--top", "0", "--out", "many.html")
    assert result.exit_code == 0, result.stderr

    many = Opened(browser, here / "many.html")
    many.page.evaluate("scrollTo(0, document.body.scrollHeight)")
    many.page.locator("#gallery .path", has_text="far/19999.png").wait_for()

    assert many.page.locator(".card").count() < 60
    assert many.complaints == []
    many.context.close()
