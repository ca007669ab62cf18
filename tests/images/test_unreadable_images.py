"""Tests of `anomaly_cli.images`: why a file cannot be read, and what reading must not disturb."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pictures import noise, saved, smooth
from PIL import Image, ImageFile

from anomaly_cli.errors import UnreadableImageError
from anomaly_cli.images.decode import load_image, read_pixels
from anomaly_cli.images.find import find_images

TEXT = b"no picture at all, only words"
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"


def encoded(file_format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(noise()).save(stream, file_format, **options)
    return stream.getvalue()


def written(path: Path, data: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def png_of_size(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return start + struct.pack(">I4s", 100, b"IDAT") + bytes(104)


def reason(path: Path) -> str:
    with pytest.raises(UnreadableImageError) as loading:
        load_image(path, 64)
    with pytest.raises(UnreadableImageError) as reading:
        read_pixels(path)

    assert loading.value.reason == reading.value.reason
    return loading.value.reason


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path()


def test_what_cannot_be_read_is_listed_and_has_a_reason(here: Path) -> None:
    (here / "dangling.png").symlink_to("nowhere")
    (here / "itself.png").symlink_to("itself.png")
    os.mkfifo(here / "pipe.png")

    paths = find_images([here, here / "dangling.png", here / "itself.png"])

    assert [reason(path) for path in paths] == [
        "no such file",
        "cannot be read: Too many levels of symbolic links",
        "not a regular file",
    ]


def test_a_file_in_a_closed_folder_is_kept(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path, **_: Any) -> os.stat_result:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "stat", refused)

    assert find_images([here / "locked/x.png"]) == [Path("locked/x.png")]
    assert reason(here / "locked/x.png") == "permission denied"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "empty file"),
        (TEXT, "not an image"),
        (b"\0" * 5000, "not an image"),
        (b"P6 0 0 255\n", "not an image"),
        (EPS, "not an image"),
        (png_of_size(0, 9), "cannot be decoded: bad PNG header (not identified by this driver)"),
        (png_of_size(30000, 20000), "too large: 30000 x 20000 pixels, the limit is 500000000 pixels"),
        (
            png_of_size(10**9, 10**9),
            "too large: 1000000000 x 1000000000 pixels, the limit is 500000000 pixels",
        ),
    ],
)
def test_unusable_content_has_a_reason(tmp_path: Path, data: bytes, expected: str) -> None:
    assert reason(written(tmp_path / "a.png", data)) == expected


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
@pytest.mark.parametrize(
    ("file_format", "options", "expected"),
    [
        ("JPEG", {}, "truncated"),
        ("PNG", {}, "truncated"),
        ("BMP", {}, "truncated: {} bytes missing"),
        ("GIF", {}, "truncated"),
        ("TIFF", {}, "truncated: {} bytes missing"),
        ("TIFF", {"compression": "tiff_lzw"}, "truncated: the directory is missing"),
        ("WEBP", {}, "cannot be decoded: could not create decoder object"),
        ("JPEG2000", {}, "cannot be decoded: broken data stream when reading image file"),
    ],
)
def test_a_truncated_file_is_unreadable(
    tmp_path: Path, file_format: str, options: dict[str, str], expected: str, share: float
) -> None:
    data = encoded(file_format, **options)
    length = int(share * len(data))

    assert reason(written(tmp_path / "a", data[:length])) == expected.format(len(data) - length)


def test_a_truncated_jpeg_is_unreadable_also_when_it_is_scaled_down_while_decoding(tmp_path: Path) -> None:
    data = saved(tmp_path / "a.jpg", smooth(1000, 1000)).read_bytes()

    assert reason(written(tmp_path / "b.jpg", data[:-40])) == "truncated"
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_any_prefix_of_a_file_is_read_or_has_a_short_printable_reason(tmp_path: Path) -> None:
    for file_format in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF"):
        data = encoded(file_format)
        for length in [*range(1, 60), *range(60, len(data) - 40, len(data) // 15)]:
            text = reason(written(tmp_path / "a", data[:length]))

            assert text.isprintable()
            assert 0 < len(text) <= 120


def test_a_vanished_file_is_no_such_file(tmp_path: Path) -> None:
    assert reason(tmp_path / "gone.png") == "no such file"
    assert reason(written(tmp_path / "file") / "x.png") == "no such file"
    assert reason(tmp_path) == "is a directory"


def test_a_refused_file_is_permission_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path, mode: str) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    path = saved(tmp_path / "a.png", noise())
    monkeypatch.setattr(Path, "open", refused)

    assert reason(path) == "permission denied"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(5, "Input/output error"), "cannot be read: Input/output error"),
        (MemoryError(), "cannot be decoded: not enough memory"),
        (Image.DecompressionBombError("a tile of it"), "too large: a tile of it"),
        (EOFError("no more images"), "truncated"),
        (struct.error("odd\n\tlength\x1b[31m\udcff"), "cannot be decoded: odd length?[31m?"),
        (AssertionError(), "cannot be decoded: AssertionError"),
        (ValueError("x" * 500), "cannot be decoded: " + "x" * 98 + "..."),
    ],
)
def test_an_error_of_a_decoder_becomes_one_short_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, expected: str
) -> None:
    def failing(self: Image.Image) -> None:
        raise error

    path = saved(tmp_path / "a.png", noise())
    monkeypatch.setattr(ImageFile.ImageFile, "load", failing)

    assert reason(path) == expected


# --- Threads and side effects ---


def test_threads_read_the_same_bytes_as_one_after_the_other(tmp_path: Path) -> None:
    paths = [
        saved(tmp_path / f"{number}.{suffix}", smooth(200 + number, 300))
        for number in range(6)
        for suffix in ("jpg", "png", "tif", "webp", "gif")
    ]
    serial = [load_image(path, 64).pixels.tobytes() for path in paths]

    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            threaded = list(pool.map(lambda path: load_image(path, 64).pixels.tobytes(), paths))

            assert threaded == serial


@pytest.fixture
def odd_tiff(tmp_path: Path) -> Path:
    """Write a TIFF that makes Pillow log an error (too many samples) and warn (a tag past the end)."""
    entries = [(256, 3, 1, 4), (257, 3, 1, 4), (277, 3, 1, 99), (270, 2, 999, 5000), (262, 3, 1, 1)]
    directory = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    header = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries))
    return written(tmp_path / "odd.tif", header + directory + bytes(4))


def test_nothing_is_printed_for_odd_files_in_a_fresh_process(odd_tiff: Path, tmp_path: Path) -> None:
    large = written(tmp_path / "large.png", png_of_size(10_000, 10_000))  # Pillow warns from 89 million on
    code = (
        "import sys; from pathlib import Path; from anomaly_cli import errors\n"
        "from anomaly_cli.images import decode\n"
        "for name in sys.argv[1:]:\n"
        "    try: decode.load_image(Path(name), 64)\n"
        "    except errors.UnreadableImageError: continue\n"
        "print('torch' in sys.modules)"
    )

    for options in ([], ["-W", "error"], ["-W", "always"]):
        command = [sys.executable, *options, "-c", code, str(odd_tiff), str(large)]
        result = subprocess.run(command, capture_output=True, text=True, check=True)

        assert (result.stdout, result.stderr) == ("False\n", "")


def test_the_settings_of_pillow_stay_as_they_are() -> None:
    code = (
        "from PIL import Image; limit = Image.MAX_IMAGE_PIXELS\n"
        "from anomaly_cli.images import decode; print(limit == Image.MAX_IMAGE_PIXELS)"
    )

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert result.stdout == "True\n"
