"""The command line as a whole: its commands, its errors as one line each, its exit codes; imports nothing heavy."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from anomaly_cli import console, review_commands, score_commands, table_commands, train_commands
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
            console.let_go_of_stdout()
            raise typer.Exit(0) from error


class _Command(TyperCommand):
    """A command whose every option is also an environment variable, named after both."""

    def __init__(self, name: str | None, **settings: Any) -> None:
        super().__init__(name, **settings)
        for option in self.params:
            if isinstance(option, TyperOption) and option.envvar is None:
                longest = max(option.opts, key=len).removeprefix("--")
                option.envvar = f"ANOMALY_{name}_{longest}".upper().replace("-", "_")
                option.show_envvar = False  # the rule is said once, below `anomaly --help`


app = typer.Typer(
    cls=_ReportingGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="Options are also read from the environment: --fdr of score from ANOMALY_SCORE_FDR.",
)


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
    train_commands.update,
    score_commands.score,
    score_commands.audit,
    score_commands.heatmap,
    review_commands.report,
    train_commands.info,
):
    app.command(cls=_Command)(command)
app.command("list", cls=_Command)(table_commands.list_paths)

if __name__ == "__main__":
    app()
