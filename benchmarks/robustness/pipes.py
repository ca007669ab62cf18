"""Try every way in and out of the commands from a real shell: `python -m benchmarks.robustness.pipes`.

Prints a Markdown table with one row per promise: the sentence, the shell line that tests it, its output. Exits with 1
where an output differs from the expected one.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.accuracy.textures import write_textures
from benchmarks.robustness.malformed import train_model

FILES = 12
COMPLETION_S = 0.3  # of processor time; spent at every press of the key
DEADLINE_S = 300


@dataclass(frozen=True)
class Promise:
    """A sentence of the docs, the shell line that tests it, and what it prints if the sentence is true."""

    sentence: str
    line: str
    expected: str


PROMISES = [
    Promise("folders", "anomaly score incoming -q && wc -l < scores.csv", "13"),
    Promise("files", "anomaly score incoming/00001.jpg incoming/00002.jpg -q -o - | wc -l", "3"),
    Promise("`heatmap` takes the same", "anomaly heatmap incoming --top 2 -q && find heatmaps -type f | wc -l", "2"),
    Promise("`--files-from FILE`", "ls incoming/*1.jpg > list; anomaly score --files-from list -q -o - | wc -l", "3"),
    Promise("`--files-from -`", "ls incoming/*1.jpg | anomaly score --files-from - -q -o - | wc -l", "3"),
    Promise(
        "NUL with `-0`", "find incoming -name '*1.jpg' -print0 | anomaly score --files-from - -0 -q -o - | wc -l", "3"
    ),
    Promise("`zip://`", "anomaly score zip://::incoming.zip -q -o - | grep -c zip://", "12"),
    Promise(
        "`memory://`",
        "python -c 'import fsspec, sys; from pathlib import Path; from anomaly_cli.cli import app; "
        '[fsspec.filesystem("memory").pipe(f"/{p}", p.read_bytes()) for p in Path("incoming").iterdir()]; app()\' '
        "score memory://incoming -q -o - | grep -c memory://",
        "12",
    ),
    Promise("`https://` (a local server)", 'anomaly score "$URL/00001.jpg" "$URL/none.jpg" -q -o - | wc -l', "3"),
    Promise(
        "`--include`, `--exclude`", "anomaly score incoming --include '*1.jpg' --exclude '0001*' -q -o - | wc -l", "2"
    ),
    Promise(
        "formats by suffix",
        "for s in csv tsv jsonl parquet; do anomaly score incoming -q -o t.$s; head -c 5 t.$s | cut -c1-4; done",
        'rank\nrank\n{"ra\nPAR1',
    ),
    Promise("`--format`", "anomaly score incoming -q -o - --format jsonl | head -c 7", '{"rank"'),
    Promise("`--out -` is data alone", "anomaly score incoming -o - 2> messages | grep -c incoming/", "12"),
    Promise(
        "`--stream` writes each row as it is known",
        "mkfifo names; anomaly score --files-from names --stream -q > rows & exec 3> names; "
        "echo incoming/00001.jpg >&3; until test -s rows; do sleep 0.1; done; echo first row is there; "
        "echo incoming/00002.jpg >&3; exec 3>&-; wait; wc -l < rows",
        "first row is there\n2",
    ),
    Promise("unranked", "anomaly score incoming --stream -q | grep -c '\"rank\": null'", "12"),
    Promise(
        "survives half-written files",
        "f=incoming/00001.jpg; head -c 900 $f > growing.jpg; "
        "(for i in 1 2 3 4 5 6 7 8; do sleep 0.5; touch growing.jpg; done; tail -c +901 $f >> growing.jpg) & "
        'echo growing.jpg | anomaly score --files-from - --stream -q | grep -c \'"status": "ok"\'',
        "1",
    ),
    Promise(
        "`list --flagged`",
        "anomaly score incoming --top 1 -q -o flagged.csv; anomaly list flagged.csv --flagged",
        "incoming/00009.jpg",
    ),
    Promise("`list --above X`", "anomaly list scores.csv --above 0 | wc -l; anomaly list scores.csv --above 99", "12"),
    Promise("`list --top N`", "anomaly list scores.csv --top 1", "incoming/00009.jpg"),
    Promise(
        "`-0` for `xargs`",
        "mkdir odd; anomaly list scores.csv --top 1 -0 | xargs -0 -r cp -t odd --; ls odd",
        "00009.jpg",
    ),
    Promise(
        "options from `ANOMALY_*`",
        "ANOMALY_SCORE_TOP=2 ANOMALY_SCORE_OUT=env.tsv ANOMALY_SCORE_QUIET=1 anomaly score incoming; "
        "anomaly list env.tsv --flagged | wc -l",
        "2",
    ),
]


@contextmanager
def workplace() -> Iterator[dict[str, str]]:
    """Make a folder with a model, images, an archive, a server and the command; yield the environment of a shell."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train_model(folder).rename(folder / "anomaly.safetensors")
        write_textures(folder / "incoming", FILES, 128, seed=1)
        shutil.make_archive(str(folder / "incoming"), "zip", folder / "incoming")
        command = folder / "bin" / "anomaly"
        command.parent.mkdir()
        command.write_text(f"#!{sys.executable}\nfrom anomaly_cli.cli import app\napp(prog_name='anomaly')\n")
        command.chmod(0o755)
        handler = functools.partial(_Silent, directory=str(folder / "incoming"))
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            url = f"http://127.0.0.1:{server.server_port}"
            path = f"{command.parent}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
            yield {**os.environ, "PATH": path, "URL": url, "PWD": name}
            server.shutdown()


class _Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def shell(line: str, environment: dict[str, str]) -> str:
    """Run a line in a shell in the working folder; return what it printed, stderr included."""
    result = subprocess.run(
        ["sh", "-c", line],
        cwd=environment["PWD"],
        env=environment,
        capture_output=True,
        text=True,
        errors="backslashreplace",
        timeout=DEADLINE_S,
        check=False,
    )
    return (result.stdout + result.stderr).strip()


def completion_s(environment: dict[str, str]) -> float:
    """Measure the processor time of one completion, the best of five."""
    asked = {"_ANOMALY_COMPLETE": "complete_bash", "COMP_WORDS": "anomaly score --fi", "COMP_CWORD": "2"}
    took = []
    for _ in range(5):
        before = os.times()
        if "--files-from" not in shell("anomaly", environment | asked):
            return float("inf")
        after = os.times()
        took.append(after.children_user + after.children_system - before.children_user - before.children_system)
    return min(took)


def table_row(promise: Promise, printed: str) -> str:
    """Make the row of a Markdown table."""
    cells = [promise.sentence, f"`{promise.line}`", printed]
    row = " | ".join(" / ".join(cell.splitlines()).replace("|", "\\|") for cell in cells)
    return f"| {row} | {'as it should' if printed == promise.expected else 'WRONG'} |"


def main() -> None:
    """Try all and print the table."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    wrong = 0
    with workplace() as environment:
        for promise in PROMISES:
            printed = shell(promise.line, environment)
            wrong += printed != promise.expected
            print(table_row(promise, printed), flush=True)
        took_s = completion_s(environment)
    print(f"completion: {took_s:.2f} s of processor time, the limit is {COMPLETION_S} s")
    sys.exit(wrong > 0 or took_s > COMPLETION_S)


if __name__ == "__main__":
    main()
