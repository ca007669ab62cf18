"""The command line as a whole: its commands, its errors as one line each, its exit codes; imports nothing heavy."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from anomaly_cli import console, score_commands, train_commands
from anomaly_cli.errors import AnomalyError


class _ReportingGroup(TyperGroup):
    """Turn an `AnomalyError` from any subcommand into one line and its exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except AnomalyError as error:
            console.say(f"error: {error}")
            raise typer.Exit(error.exit_code) from error
        except BrokenPipeError as error:
            # The reader has gone; Python would complain again when it flushes stdout at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from error


app = typer.Typer(cls=_ReportingGroup, no_args_is_help=True, pretty_exceptions_enable=False)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"anomaly {version('anomaly-cli')}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Audit folders of images: learn what normal looks like, rank what deviates, show where."""


for command in (
    train_commands.train,
    score_commands.score,
    score_commands.heatmap,
    train_commands.info,
):
    app.command()(command)

if __name__ == "__main__":
    app()
