"""URLs as inputs, through fsspec: in memory, in a zip archive, on a local HTTP server; errors are one line."""

from __future__ import annotations

import builtins
import os
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest
from command_line import anomaly, rows_of
from fsspec.registry import known_implementations
from shared_run import SETTINGS
from typer.testing import Result

from anomaly_cli.errors import InputError
from anomaly_cli.images.find import find_images
from anomaly_cli.images.patterns import PathPatterns
from anomaly_cli.paths import RemotePath, path_of

SCORES = Path("scores.csv")


@pytest.fixture
def memory(here: Path) -> Iterator[str]:
    """URL of a folder in memory with the files of `incoming`, and of some that are no images."""
    system = fsspec.filesystem("memory")
    system.put("incoming", "/lot", recursive=True)
    for name in (".hidden.png", ".cache/a.png", "words.txt"):
        system.pipe(f"/lot/{name}", b"not looked at")
    yield "memory://lot"
    system.store.clear()
    system.pseudo_dirs[:] = [""]


@pytest.fixture
def archive(here: Path) -> str:
    """URL of a zip archive with the files of `incoming` below `lot`."""
    with zipfile.ZipFile("lot.zip", "w") as file:
        for path in Path("incoming").rglob("*.*"):
            file.write(path, Path("lot", path.relative_to("incoming")))
    return f"zip://lot::{here / 'lot.zip'}"


@pytest.fixture
def server(here: Path) -> Iterator[str]:
    """URL of a web server's folder with the files of `incoming`."""
    pytest.importorskip("aiohttp", reason="https:// needs the extra `remote`")

    class Silent(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=os.fspath(here))) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/incoming"
        running.shutdown()


def local_rows() -> dict[str, dict[str, str]]:
    """Rows of `incoming` as local files, by their path below it."""
    anomaly("score", "incoming", "-q", "--out", "local.csv")
    return {row.pop("path").removeprefix("incoming/"): row for row in rows_of(Path("local.csv").read_bytes())}


def assert_error(result: Result, message: str, exit_code: int = 1) -> None:
    assert result.stderr == f"error: {message}\n"
    assert (result.stdout, result.exit_code) == ("", exit_code)


# A URL is a path that reads elsewhere


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/a b.png",
        "gs://bucket",
        "memory://",
        "memory://lot",
        "https://host:8080/lot/a.png?size=1&x=%20",
        "zip://a.png::/data/lot.zip",
        "zip://::lot.zip",
        "zip://lot/a.png::https://host/lot.zip",
    ],
)
def test_a_url_stays_as_it_was_written(url: str) -> None:
    path = path_of(url)

    assert isinstance(path, RemotePath)
    assert (os.fspath(path), str(path), os.fsencode(path)) == (url, url, url.encode())
    assert {path, path_of(url)} == {path}


@pytest.mark.parametrize("name", ["a.png", "s3:/a.png", "c://a.png", "file:///a.png", "./s3://a", "S3", "a b://c", ""])
def test_everything_else_is_a_plain_path(name: str) -> None:
    assert not isinstance(path_of(name), RemotePath)
    assert path_of(name) == Path(name)


def test_a_folder_is_searched_as_a_local_one_is(memory: str) -> None:
    found = [str(path) for path in find_images([path_of(memory)])]
    below = [str(path).removeprefix("incoming/") for path in find_images([Path("incoming")])]

    assert found == [f"memory://lot/{name}" for name in below]


def test_patterns_are_for_files_in_folders_and_not_for_named_ones(memory: str) -> None:
    patterns = PathPatterns(("deep/*", "good*"), ("good0*",))
    named = path_of(f"{memory}/bad0.jpg")

    found = find_images([path_of(memory), named, path_of(f"{memory}/words.txt")], patterns)

    names = ["bad0.jpg", "deep/good one.png", "good1.png", "good2.png", "good3.png", "good4.png", "words.txt"]
    assert [str(path) for path in found] == [f"memory://lot/{name}" for name in names]


def test_a_file_with_the_suffix_of_an_image_is_not_looked_for(here: Path) -> None:
    urls = ["memory://nowhere/a.png", "memory://nowhere/b.JPG?signature=a/b.txt"]

    assert [str(path) for path in find_images([path_of(url) for url in urls])] == urls


# Commands


def assert_same_scores(url_of: str) -> None:
    expected = local_rows()

    result = anomaly("score", url_of, "-q")

    assert result.exit_code == 0, result.stderr
    first, chain, rest = url_of.partition("::")
    rows = rows_of(SCORES.read_bytes())
    paths = {f"{first}/{name}{chain}{rest}".replace(" ", "%20" if "http" in first else " "): name for name in expected}
    assert {row["path"] for row in rows} == set(paths)
    assert {paths[row.pop("path")]: row for row in rows} == expected


def test_files_in_memory_have_the_scores_of_local_ones(memory: str) -> None:
    assert_same_scores(memory)


def test_files_in_an_archive_have_the_scores_of_local_ones(archive: str) -> None:
    assert_same_scores(archive)


def test_files_on_a_web_server_have_the_scores_of_local_ones(server: str) -> None:
    assert_same_scores(server)


def test_an_archive_may_be_behind_a_url_itself(memory: str, archive: str) -> None:
    fsspec.filesystem("memory").put("lot.zip", "/lot.zip")

    assert_same_scores("zip://lot::memory://lot.zip")


def test_a_web_server_without_ranges_serves_no_archive_and_says_so(server: str, archive: str) -> None:
    url = f"zip://lot::{server.removesuffix('incoming')}lot.zip"

    result = anomaly("score", url)

    assert result.stderr.startswith(
        f"error: cannot open {url}: The HTTP server doesn't appear to support range requests"
    )
    assert (result.stderr.count("\n"), result.stdout, result.exit_code) == (1, "", 1)


def test_a_missing_page_and_a_missing_file_are_rows(server: str, memory: str) -> None:
    urls = [f"{server}/gone.png", f"{memory}/gone.png"]

    anomaly("score", *urls, f"{memory}/good0.png", "-q")

    reasons = {row["path"]: row["reason"] for row in rows_of(SCORES.read_bytes())}
    assert reasons == {urls[0]: "no such file", urls[1]: "no such file", f"{memory}/good0.png": ""}


def test_damaged_and_empty_files_are_rows(memory: str) -> None:
    system = fsspec.filesystem("memory")
    system.pipe("/lot/cut.png", Path("incoming/good0.png").read_bytes()[:200])
    system.pipe("/lot/empty.png", b"")

    anomaly("score", memory, "-q")

    *_, cut, empty = rows_of(SCORES.read_bytes())
    assert (cut["path"], cut["status"]) == ("memory://lot/cut.png", "unreadable")
    assert (empty["path"], empty["reason"]) == ("memory://lot/empty.png", "empty file")


def test_what_a_file_system_refuses_is_the_reason_of_its_row(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class AccessDeniedError(Exception):
        """Not an OSError, as those of cloud libraries."""

    def refuse(self: Any, path: str, **_: Any) -> bytes:
        raise AccessDeniedError("who are you?\nsecond line")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_file", refuse)

    result = anomaly("score", f"{memory}/good0.png", "-q")

    assert_error(
        result,
        "none of the 1 files can be read, first memory://lot/good0.png: cannot be read: who are you?",
    )


def test_urls_are_taken_from_a_list_and_by_a_stream(memory: str) -> None:
    Path("names").write_text(f"{memory}/bad0.jpg\nincoming/good0.png\n{memory}/deep\n")

    whole = anomaly("score", "--files-from", "names", "-q", "--out", "-")
    stream = anomaly("score", "--files-from", "names", "-q", "--stream")

    paths = [f"{memory}/bad0.jpg", "incoming/good0.png", f"{memory}/deep/good one.png"]
    assert {row["path"] for row in rows_of(whole.stdout_bytes)} == set(paths)
    assert [line.split('"path": "')[1].split('"')[0] for line in stream.stdout.splitlines()] == paths


def test_heatmaps_pages_and_models_are_made_from_urls(memory: str) -> None:
    fsspec.filesystem("memory").put("normal", "/normal", recursive=True)

    assert anomaly("score", memory, "-q").exit_code == 0
    drawn = anomaly("heatmap", "--scores", SCORES, "--top", "2", "-q")
    page = anomaly("report", SCORES, "-q")
    trained = anomaly("train", "memory://normal", *SETTINGS, "-q", "--model", "remote.safetensors")
    audited = anomaly("audit", memory, "-q", "--image-size", "64", "--prototypes", "50")

    assert [result.exit_code for result in (drawn, page, trained, audited)] == [0] * 4, page.stderr + audited.stderr
    assert len(list(Path("heatmaps").rglob("*.png"))) == 2
    assert "memory://lot/bad0.jpg" in Path("report.html").read_text("utf-8")
    assert "learned" not in trained.stderr
    assert {row["path"] for row in rows_of(Path("audit.csv").read_bytes())} == {
        row["path"] for row in rows_of(SCORES.read_bytes())
    }


# Errors


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nix://lot/a.png", "cannot open nix://lot/a.png: Protocol not known: nix"),
        ("memory://nowhere", "no such file or folder: memory://nowhere"),
        ("zip://::gone.zip", "cannot open zip://::gone.zip: [Errno 2] No such file or directory: '{here}/gone.zip'"),
        ("zip://::words.zip", "cannot open zip://::words.zip: File is not a zip file"),
    ],
)
def test_what_cannot_be_opened_is_one_line(here: Path, url: str, message: str) -> None:
    Path("words.zip").write_text("only words")

    assert_error(anomaly("score", url), message.format(here=here))


def test_a_missing_library_for_a_protocol_is_one_line_at_once(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = {"class": "no_such_library.FileSystem", "err": "Install s3fs to access S3"}
    monkeypatch.setitem(known_implementations, "s3", missing)

    assert_error(anomaly("score", "s3://bucket/a.png"), "cannot open s3://bucket/a.png: Install s3fs to access S3")


def test_a_missing_fsspec_is_one_line(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain_import = builtins.__import__

    def without_fsspec(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("fsspec"):
            raise ImportError(name)
        return plain_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_fsspec)

    with pytest.raises(InputError) as raised:
        find_images([path_of("s3://bucket")])

    assert str(raised.value) == "cannot read s3://bucket: install fsspec, or anomaly-cli with the extra `remote`"


def test_a_folder_that_cannot_be_listed_is_one_line(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any, path: str, **_: Any) -> list[str]:
        raise PermissionError(f"no list of {path}")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "find", refuse)

    assert_error(anomaly("score", memory), "cannot list memory://lot: no list of /lot")


def test_a_run_to_resume_needs_local_files(memory: str) -> None:
    result = anomaly("score", memory, "--resume")

    assert_error(result, "--resume goes with files of this machine, not with memory://lot", 2)


def test_local_files_are_read_without_fsspec(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RemotePath, "_opened", None)

    assert anomaly("score", "incoming", "-q").exit_code == 0
