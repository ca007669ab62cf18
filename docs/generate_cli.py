"""Write docs/cli.md, the reference of the command line, from the code: `make docs`."""

from __future__ import annotations

import re
from pathlib import Path

import typer
from typer.cli import get_docs_for_click
from typer.core import TyperGroup

from anomaly_cli.cli import app

PAGE = Path(__file__).with_name("cli.md")
HEAD = """\
<!-- Made from the code by `make docs`: edit the help texts in anomaly_cli/commands/ instead. -->

This is what `anomaly COMMAND --help` says, on one page. Recipes for shell scripts: [recipes.md](recipes.md).

**Where output goes.** Tables and lists go to a file or to stdout, everything for people to stderr.

**Exit codes.** 0 done · 1 failed · 2 wrong usage · 3 a gate of `--fail-on` tripped · 130 interrupted.

**Environment.** Each option can be set as an environment variable: `ANOMALY_MODEL` and `ANOMALY_DEVICE` for all
commands, the others by command and option, such as `ANOMALY_SCORE_FILES_FROM` for `--files-from` of `score`. The
command line goes before the environment; an empty variable counts as not set. Switches take 1 or 0. Options that may
be repeated take several values with blanks between them. An error about usage names the variables that are set.
`NO_COLOR` turns colours off. `ANOMALY_FLOAT32=1` computes in float32 also where the processor has bfloat16: slower, and
equal on all machines.

**URLs.** Where images are read, `INPUT` and the lines of `--files-from` may be URLs that
[fsspec](https://filesystem-spec.readthedocs.io) knows: `https://` and `zip://folder::archive.zip` with
`pip install 'anomaly-cli[remote]'`, `s3://` and `gs://` with `s3fs` and `gcsfs` besides. The `path` column holds the
URL. Tables, models and pictures are written to this machine, and `--resume` needs local files.

**Completion.** `anomaly --install-completion` completes commands, options and their values in bash, zsh, fish and
PowerShell.
"""


def page() -> str:
    """Render the page; the same text whatever the terminal and the environment."""
    root = typer.main.get_command(app)
    assert isinstance(root, TyperGroup)
    for command in root.commands.values():
        command.short_help = (command.help or "").partition("\n")[0]  # else cut to 45 characters
    body = get_docs_for_click(obj=root, ctx=typer.Context(root), name="anomaly", title="Command line")
    # A file pattern such as *.png is no emphasis.
    body = re.sub(r"(?m)^\* .*", lambda line: "*" + line[0][1:].replace("*", r"\*"), body)
    return body.replace("**Usage**", f"{HEAD}\n**Usage**", 1).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
