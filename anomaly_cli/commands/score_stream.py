"""`anomaly score --stream`: one row per file as soon as it is known."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from anomaly_cli.commands import console
from anomaly_cli.commands.inputs import iter_paths, read_inputs
from anomaly_cli.config import Engine, FlagRule
from anomaly_cli.errors import ConfigError
from anomaly_cli.images.patterns import PathPatterns
from anomaly_cli.outputs import Kind, Output, check_outputs
from anomaly_cli.paths import paths_of
from anomaly_cli.tables.formats import TableFormat, by_suffix
from anomaly_cli.tables.writer import Table, json_line


def check_whole(
    of_a_whole_run: dict[str, object], out: Path | None, table_format: TableFormat | None, engine: Engine
) -> None:
    """Refuse the options that a stream cannot serve.

    Raises:
        ConfigError: one of them was given, or another format or engine.
    """
    if engine is not Engine.LOCAL:
        raise ConfigError(f"--stream scores on this machine as names arrive, it does not go with --engine {engine}")
    for option, value in of_a_whole_run.items():
        if value is not None:
            raise ConfigError(f"{option} needs the whole run, --stream writes rows before that is known")
    if table_format not in (None, TableFormat.JSONL):
        raise ConfigError(f"--stream writes JSON Lines, not {table_format}")
    if out is not None and out.suffix and by_suffix(out) is not TableFormat.JSONL and table_format is None:
        raise ConfigError(
            f"--stream writes JSON Lines, not {out.suffix}: name a file with .jsonl or use --format jsonl"
        )


class Sources(NamedTuple):
    """Where a stream takes its paths from."""

    inputs: list[str] | None
    files_from: str | None
    null: bool
    patterns: PathPatterns

    def files(self, model: Path) -> list[Path]:
        """Name the files that a run reads: the model, the list and what was typed."""
        return [model, *map(Path, [self.files_from] if self.files_from else []), *paths_of(self.inputs)]


def stream_scores(
    sources: Sources, model: Path, out: Path | None, limit: FlagRule, *, device: str, quiet: bool
) -> None:
    """Write one row per file as soon as it is known, then print the counts."""
    listed = sources.files_from is not None
    inputs = read_inputs(sources.inputs, None, sources.null and not listed, required=not listed)
    later = () if sources.files_from is None else iter_paths(sources.files_from, sources.null)
    check_outputs([Output("--out", out, Kind.JSON_LINES)], sources.files(model))
    from anomaly_cli.scoring import stream

    rows, scale_names = stream.open_stream(
        inputs, later, model, threshold=limit.value, patterns=sources.patterns, device=device
    )
    table = Table((), scale_names)
    counts = dict.fromkeys(("files", "flagged", "unreadable"), 0)

    def lines() -> Iterator[bytes]:
        for row in rows:
            counts["files"] += 1
            counts["flagged"] += row.flagged
            counts["unreadable"] += row.status != "ok"
            yield json_line(table.record(row))

    stream.append_lines(lines(), out)
    if not quiet:
        console.print_stderr(
            f"{console.plural(counts['files'], 'file')}: {counts['flagged']} flagged (score ≥ {limit.value:g}); "
            f"{counts['unreadable']} unreadable"
        )
