"""Pictures of overlays and of the review page for the README: `make screenshots` (needs Chromium)."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright
from typer.testing import CliRunner

from anomaly_cli.cli import app

ROOT = Path(__file__).parent.parent
DECIDED = "jnnnn"  # keys: one image chosen, four decided
SHOWN = ("cam2_0625", "cam2_0738", "cam2_0611", "cam1_0524")  # a crack, rust, a chip, and a normal washer
GAP = 8  # pixels between overlays


def make_page(folder: Path) -> Path:
    """Train, score and report on the sample data."""
    os.chdir(folder)
    for name in ("normal", "incoming"):
        Path(name).symlink_to(ROOT / "sample_data" / name)
    drawn = " ".join(f"incoming/{name}.jpg" for name in SHOWN)
    for command in ("train normal", "score incoming", "report scores.csv", f"heatmap {drawn}"):
        result = CliRunner().invoke(app, [*command.split(), "-q"], catch_exceptions=False)
        if result.exit_code:
            raise SystemExit(result.stderr)
    return folder / "report.html"


def save(image: Image.Image, out: Path) -> None:
    """Save a picture small enough for a repository."""
    image.save(out, quality=82, optimize=True, progressive=True)


def join_overlays(overlays: list[Path], out: Path) -> None:
    """Save overlays of one size side by side."""
    images = [Image.open(path).convert("RGB") for path in overlays]
    width, height = images[0].size
    joined = Image.new("RGB", (len(images) * (width + GAP) - GAP, height), "white")
    for i, image in enumerate(images):
        joined.paste(image, (i * (width + GAP), 0))
    save(joined, out)


def take_picture(page_file: Path, out: Path) -> None:
    """Open the page as a reviewer would and save what is in sight."""
    with sync_playwright() as playwright:
        chromium = os.environ.get("ANOMALY_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1130}, color_scheme="light")
        page.goto(page_file.as_uri())
        for key in DECIDED:
            page.keyboard.press(key)
        page.evaluate("scrollTo(0, 0)")
        page.wait_for_timeout(500)
        picture = page_file.with_suffix(".png")
        page.screenshot(path=picture)
        browser.close()
    with Image.open(picture) as image:
        save(image.convert("RGB"), out)


def main() -> None:
    """Make docs/report.jpg and docs/demo.jpg."""
    with tempfile.TemporaryDirectory() as folder:
        page = make_page(Path(folder))
        take_picture(page, ROOT / "docs" / "report.jpg")
        overlays = [next(Path(folder).glob(f"heatmaps/**/{name}*")) for name in SHOWN]
        join_overlays(overlays, ROOT / "docs" / "demo.jpg")


if __name__ == "__main__":
    main()
