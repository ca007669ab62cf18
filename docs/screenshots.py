"""Picture of the review page for the README: `make screenshots` (needs Chromium)."""

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


def make_page(folder: Path) -> Path:
    """Train, score and report on the sample data."""
    os.chdir(folder)
    for name in ("normal", "incoming"):
        Path(name).symlink_to(ROOT / "sample_data" / name)
    for command in ("train normal", "score incoming", "report scores.csv"):
        result = CliRunner().invoke(app, [*command.split(), "-q"], catch_exceptions=False)
        if result.exit_code:
            raise SystemExit(result.stderr)
    return folder / "report.html"


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
        image.convert("RGB").save(out, quality=82, optimize=True, progressive=True)


def main() -> None:
    """Make docs/report.jpg."""
    with tempfile.TemporaryDirectory() as folder:
        take_picture(make_page(Path(folder)), ROOT / "docs" / "report.jpg")


if __name__ == "__main__":
    main()
