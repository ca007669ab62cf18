"""`anomaly score --stream`: one row per file as soon as it is known."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from anomaly_cli.commands import console
from anomaly_cli.commands.inputs import iter_paths, read_inputs
from anomaly_cli.config import Engine, FlagRule, RegionRule, Rule
from anomaly_cli.errors import ConfigError
from anomaly_cli.images.patterns import PathPatterns
from anomaly_cli.outputs import Kind, Output, check_outputs
from anomaly_cli.paths import paths_of
from anomaly_cli.tables.formats import TableFormat, by_suffix, is_compressed
from anomaly_cli.tables.region_table import region_records
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
    """Where a run takes its paths from, and the region of interest of these images."""

    inputs: list[str] | None
    files_from: str | None
    null: bool
    patterns: PathPatterns
    roi: Path | None

    def files(self, model: Path) -> list[Path]:
        """Name the files that a run reads: the model, the list and what was typed."""
        return [model, *map(Path, [self.files_from] if self.files_from else []), *paths_of(self.inputs)]


class Outputs(NamedTuple):
    """Where a stream goes: rows, to stdout if None, and regions, nowhere if None."""

    rows: Path | None
    regions: Path | None

    def check(self, sources: Sources, model: Path) -> None:
        """Refuse what cannot be written, or is no JSON Lines.

        Raises:
            AnomalyError: with the reason.
        """
        if self.regions is not None and (
            by_suffix(self.regions) is not TableFormat.JSONL or is_compressed(self.regions)
        ):
            raise ConfigError(f"--stream writes JSON Lines: name a file with .jsonl for --regions, not {self.regions}")
        outputs = [Output("--out", self.rows, Kind.JSON_LINES), Output("--regions", self.regions, Kind.REGION_LINES)]
        check_outputs(outputs, sources.files(model))


def stream_scores(
    sources: Sources,
    model: Path,
    outputs: Outputs,
    threshold: float | None,
    *,
    region_rule: RegionRule,
    device: str,
    quiet: bool,
) -> None:
    """Write one row per file as soon as it is known, its regions before it, then print the counts."""
    limit = FlagRule(Rule.THRESHOLD, 1 if threshold is None else threshold)
    listed = sources.files_from is not None
    inputs = read_inputs(sources.inputs, None, sources.null and not listed, required=not listed)
    later = () if sources.files_from is None else iter_paths(sources.files_from, sources.null)
    outputs.check(sources, model)
    from anomaly_cli.scoring import stream

    rows, scale_names = stream.open_stream(
        inputs,
        later,
        model,
        threshold=limit.value,
        patterns=sources.patterns,
        roi=sources.roi,
        device=device,
        region_rule=region_rule,
    )
    table = Table((), scale_names)
    counts = dict.fromkeys(("files", "flagged", "unreadable"), 0)
    with ExitStack() as stack:
        append = stack.enter_context(stream.open_appending(outputs.rows))
        add_region = None
        if outputs.regions is not None:
            add_region = stack.enter_context(stream.open_appending(outputs.regions))
        for row in rows:
            counts["files"] += 1
            counts["flagged"] += row.flagged
            counts["unreadable"] += row.status != "ok"
            if add_region is not None:
                for record in region_records(row):
                    add_region(json_line(record))
            append(json_line(table.record(row)))
    if not quiet:
        console.print_stderr(
            f"{console.plural(counts['files'], 'file')}: {counts['flagged']} flagged (score ≥ {limit.value:g}); "
            f"{counts['unreadable']} unreadable"
        )
