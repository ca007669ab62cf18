"""`python -m anomaly_cli` is the command `anomaly`."""

from __future__ import annotations

from anomaly_cli.cli import app

if __name__ == "__main__":
    app(prog_name="anomaly")
