"""The command-line application: its commands, one-line errors and exit codes; imports nothing heavy."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from anomaly_cli import streams
from anomaly_cli.commands import audit, console, evaluate, export, heatmap, info, list_paths, prototypes, report, update
from anomaly_cli.commands import score as commands_score
from anomaly_cli.commands import train as commands_train
from anomaly_cli.errors import AnomalyError, ConfigError

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

    def invoke(self, ctx: Any) -> Any:
        streams.replace_closed_streams()
        try:
            with _ending_cleanly():
                return super().invoke(ctx)
        except AnomalyError as error:
            console.print_stderr(f"error: {error}")
            raise typer.Exit(error.exit_code) from error
        except BrokenPipeError as error:
            streams.redirect_stdout_to_null()
            raise typer.Exit(0) from error


class _Command(TyperCommand):
    """A command whose every option is also an environment variable; errors about its value name the variable."""

    def __init__(self, name: str | None, **settings: Any) -> None:
        super().__init__(name, **settings)
        for option in self.params:
            if isinstance(option, TyperOption) and option.envvar is None:
                option.envvar = f"ANOMALY_{name}_{_long_name(option)}".upper().replace("-", "_")
                option.show_envvar = False  # the rule is said once, below `anomaly --help`

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            variable = _variable_of(error.param, ctx)
            if variable is None:
                raise
            raise ConfigError(f"{variable}={os.environ[variable]}: {error.message}") from error

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            origins = [
                f"--{_long_name(option)} is from {variable}"
                for option in self.params
                if (variable := _variable_of(option, ctx)) and _is_named(option, str(error))
            ]
            if not origins:
                raise
            raise ConfigError(f"{error} ({', '.join(origins)})") from error


def _long_name(option: Any) -> str:
    name: str = max(option.opts, key=len)
    return name.removeprefix("--")


def _variable_of(option: Any, ctx: Any) -> str | None:
    """Name the environment variable that an option of this run was taken from."""
    source = ctx.get_parameter_source(option.name) if isinstance(option, TyperOption) else None
    return option.envvar if source is not None and source.name == "ENVIRONMENT" else None


def _is_named(option: Any, message: str) -> bool:
    """Tell whether an error is about an option: `--image-size`, `image size` or `-0` stands in it as a word."""
    names = [*map(re.escape, option.opts), _long_name(option).replace("-", "[-_ ]")]
    return re.search(rf"(?<![\w-])({'|'.join(names)})(?![\w-])", message) is not None


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
    app.command(cls=_Command)(command)


app.command("list", cls=_Command)(list_paths.list_paths)


if __name__ == "__main__":
    app()
