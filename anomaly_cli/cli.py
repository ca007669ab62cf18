"""The command-line application: its commands, one-line errors and exit codes; imports nothing heavy."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup, TyperOption

from anomaly_cli import streams
from anomaly_cli.commands import audit, console, evaluate, export, heatmap, info, list_paths, prototypes, report, update
from anomaly_cli.commands import score as commands_score
from anomaly_cli.commands import train as commands_train
from anomaly_cli.errors import AnomalyError, ConfigError

PREFIX = "ANOMALY"  # of the environment variable of each option
ENDING_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


class _Ended(BaseException):
    """A signal asks this process to end; raised so that half-written files are removed on the way out."""


@contextmanager
def _ending_cleanly() -> Iterator[None]:
    """Clean up before a signal ends the process as it would have anyway; a second one does not wait for that.

    Where a signal is ignored (`nohup`) it stays so, and in a thread, which may set no handlers, nothing changes.
    """

    def end(number: int, _frame: object) -> NoReturn:
        signal.signal(number, signal.SIG_DFL)
        raise _Ended(number)

    in_main = threading.current_thread() is threading.main_thread()
    handled = [number for number in ENDING_SIGNALS if in_main and signal.getsignal(number) is signal.SIG_DFL]
    for number in handled:
        signal.signal(number, end)
    try:
        yield
    except _Ended as ended:
        os.kill(os.getpid(), ended.args[0])
        raise
    finally:
        for number in handled:
            signal.signal(number, signal.SIG_DFL)


class _ReportingGroup(TyperGroup):
    """Turn an `AnomalyError` from any subcommand into one line and its exit code."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Find a command; its help names only variables that several commands share, the epilog says the rule."""
        command = super().get_command(ctx, cmd_name)
        for option in command.params if command else ():
            if isinstance(option, TyperOption):
                option.show_envvar = option.envvar is not None
        return command

    def invoke(self, ctx: Any) -> Any:
        streams.replace_closed_streams()
        try:
            with _ending_cleanly():
                return super().invoke(ctx)
        except AnomalyError as error:
            console.print_stderr(f"error: {error}{_from_environment(ctx) if isinstance(error, ConfigError) else ''}")
            raise typer.Exit(error.exit_code) from error
        except typer.BadParameter as error:
            if error.ctx is None or error.param is None or error.param.name is None:
                raise
            source = error.ctx.get_parameter_source(error.param.name)
            if source is None or source.name != "ENVIRONMENT":
                raise
            given, name = error.param.envvar, error.param.name.upper()
            variable = given if isinstance(given, str) else f"{error.ctx.auto_envvar_prefix}_{name}"
            console.print_stderr(f"error: {variable}={os.environ[variable]}: {error.message}")
            raise typer.Exit(2) from error
        except BrokenPipeError as error:
            streams.redirect_stdout_to_null()
            raise typer.Exit(0) from error


def _from_environment(ctx: Any) -> str:
    """Name the variables that set options of this command; one of them may be what is wrong."""
    start = f"{PREFIX}_{ctx.invoked_subcommand}_".upper()
    names = ", ".join(sorted(name for name, value in os.environ.items() if name.startswith(start) and value))
    return f" (set in the environment: {names})" if names else ""


app = typer.Typer(
    cls=_ReportingGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"auto_envvar_prefix": PREFIX},
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
        typer.Option(
            "--version",
            callback=_show_version,
            is_eager=True,
            allow_from_autoenv=False,
            help="Show the version and exit.",
        ),
    ] = False,
) -> None:
    """Audit folders of images: learn what normal looks like, rank what deviates, show where."""


for command in (
    commands_train.train,
    update.update,
    commands_score.score,
    audit.audit,
    heatmap.heatmap,
    report.report,
    evaluate.evaluate,
    prototypes.prototypes,
    info.info,
    export.export,
):
    app.command()(command)


app.command("list")(list_paths.list_paths)


if __name__ == "__main__":
    app()
