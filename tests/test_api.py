"""What `import anomaly_cli` offers notebooks: the values of the command line, and nothing heavy before it is used."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from command_line import anomaly, rows_of
from PIL import Image
from shared_run import CONFIG

import anomaly_cli
from anomaly_cli.detector.checkpoint import Model
from anomaly_cli.errors import AnomalyError

PAGE = Path(__file__).parents[1] / "docs" / "notebook.md"
QUICK: dict[str, Any] = {"image_size": 64, "prototypes": 50, "effort": "quick"}


def table_of(*inputs: str) -> pd.DataFrame:
    """The table that the command line writes, with the types that a format without types has lost."""
    assert anomaly("score", *inputs, "--out", "scores.parquet", "-q").exit_code == 0
    return pd.read_parquet("scores.parquet")


def test_four_names_are_offered() -> None:
    assert anomaly_cli.__all__ == ["heatmap", "regions", "score", "train"]
    assert all(callable(getattr(anomaly_cli, name)) for name in anomaly_cli.__all__)


def test_a_name_that_there_is_not_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match=r"^module 'anomaly_cli' has no attribute 'evaluate'$"):
        anomaly_cli.evaluate  # noqa: B018


def test_the_import_is_light_until_a_name_is_used() -> None:
    code = (
        "import sys, anomaly_cli; heavy = ('torch', 'pandas', 'PIL', 'typer');"
        "print([name for name in heavy if name in sys.modules]); anomaly_cli.score; print('torch' in sys.modules)"
    )

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert result.stdout.splitlines() == ["[]", "True"]


@pytest.mark.parametrize("inputs", ["incoming", ["incoming/bad0.jpg", "normal"]])
def test_the_table_has_the_columns_and_values_that_the_command_writes(here: Path, inputs: str | list[str]) -> None:
    frame = anomaly_cli.score(inputs, "anomaly.safetensors")

    written = table_of(*([inputs] if isinstance(inputs, str) else inputs))
    pd.testing.assert_frame_equal(frame, written.astype(frame.dtypes), check_exact=True)
    assert frame["flagged"].dtype == bool
    assert list(frame.columns) == list(rows_of(anomaly("score", "incoming", "--out", "-", "-q").stdout_bytes)[0])


def test_unreadable_files_are_rows(here: Path) -> None:
    frame = anomaly_cli.score("normal", "anomaly.safetensors")

    assert frame["status"].tolist()[-2:] == ["unreadable"] * 2
    assert frame["reason"].tolist()[-2:] == ["empty file", "not an image"]


def test_a_model_in_memory_scores_like_a_file_of_the_command_line(here: Path) -> None:
    before = sorted(path.name for path in here.iterdir())

    model = anomaly_cli.train("normal", **QUICK, device="cpu")

    assert sorted(path.name for path in here.iterdir()) == before
    assert isinstance(model, Model)
    assert model.config == CONFIG
    pd.testing.assert_frame_equal(
        anomaly_cli.score("incoming", model), anomaly_cli.score("incoming", "anomaly.safetensors"), check_exact=True
    )


def test_a_model_can_be_kept_and_learns_from_labelled_anomalies(here: Path) -> None:
    known = [here / "incoming" / f"bad{i}.jpg" for i in range(3)]

    model = anomaly_cli.train(["normal"], model="kept.safetensors", anomalies=known, **QUICK)

    assert model.provenance.anomalies == 3
    pd.testing.assert_frame_equal(
        anomaly_cli.score(here / "incoming", model), anomaly_cli.score(here / "incoming", Path("kept.safetensors"))
    )


@pytest.mark.parametrize("name", ["incoming/bad0.jpg", "incoming/good1.png"])
def test_the_heat_map_is_the_picture_that_the_command_draws(here: Path, name: str) -> None:
    picture = anomaly_cli.heatmap(name, "anomaly.safetensors")

    assert anomaly("heatmap", name, "--out", "maps", "-q").exit_code == 0
    assert (picture.mode, picture.width) == ("RGB", max(64, picture.width))
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(Image.open(f"maps/{name}.png")))


def refused(call: Any, *arguments: Any, **settings: Any) -> str:
    with pytest.raises(AnomalyError) as raised:
        call(*arguments, **settings)
    return str(raised.value)


def test_mistakes_raise_what_the_command_says(here: Path) -> None:
    model = "anomaly.safetensors"

    assert refused(anomaly_cli.score, "gone", model) == "no such file or folder: gone"
    assert refused(anomaly_cli.score, "incoming", "gone") == (
        "no model file at gone: make one with `anomaly train NORMAL_DIR`"
    )
    assert refused(anomaly_cli.heatmap, "normal/words.jpg", model) == "cannot read normal/words.jpg: not an image"
    assert refused(anomaly_cli.heatmap, "gone.png", model) == "cannot read gone.png: no such file"
    assert refused(anomaly_cli.score, "incoming", model, device="abacus") == (
        "device abacus is not available here; use auto or cpu"
    )
    assert refused(anomaly_cli.train, "normal", effort="much") == (
        "effort must be one of quick, standard, thorough, got much"
    )
    assert refused(anomaly_cli.train, "normal", image_size=65).endswith("from 64 to 1024, got 65")
    assert refused(anomaly_cli.train, "normal", model="no/m.safetensors") == (
        "cannot write no/m.safetensors: no such folder: no"
    )


def test_the_code_of_the_page_runs_as_it_stands(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)
    Path("normal/00.jpg").stat()  # named on the page
    Path("anomaly.safetensors").unlink()  # a link to the file that all tests share, which the page writes anew
    known: dict[str, Any] = {}

    for block in blocks:
        exec(compile(block, "docs/notebook.md", "exec"), known)

    assert len(blocks) == 3
    assert set(known["worst"].path[:3]) == {f"incoming/bad{i}.jpg" for i in range(3)}
    assert len(known["table"]) == 10
    assert capfd.readouterr() == ("", "")
