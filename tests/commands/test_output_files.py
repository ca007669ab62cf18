"""Output files: whole or not there, whatever happens half-way; links, pipes and devices stay what they are."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from anomaly_cli.errors import OutputError
from anomaly_cli.files import atomic_output, is_written_directly, locked


def test_an_existing_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    out = tmp_path / "out.bin"
    out.write_bytes(b"old")

    with atomic_output(out) as file:
        file.write(b"new")
        file.flush()
        during = out.read_bytes()

    assert during == b"old"
    assert out.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_while_writing_leaves_the_old_file_and_no_partial(tmp_path: Path, error: type[BaseException]) -> None:
    out = tmp_path / "out.bin"
    out.write_bytes(b"old")

    def fail_half_way() -> None:
        with atomic_output(out) as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        fail_half_way()

    assert out.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [out]


def test_a_process_killed_while_writing_leaves_the_old_file_and_the_next_run_succeeds(tmp_path: Path) -> None:
    out = tmp_path / "out.bin"
    out.write_bytes(b"old")
    code = (
        "import sys, time; from pathlib import Path; from anomaly_cli.files import atomic_output\n"
        "with atomic_output(Path(sys.argv[1])) as file:\n"
        "    file.write(b'half'); file.flush(); print('writing', flush=True); time.sleep(60)\n"
    )

    with subprocess.Popen([sys.executable, "-c", code, out], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        process.kill()
    left = out.read_bytes()
    with atomic_output(out) as file:
        file.write(b"new")

    assert left == b"old"
    assert out.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [out]


def test_two_runs_that_write_one_file_do_so_one_after_the_other_and_the_last_one_wins(tmp_path: Path) -> None:
    out = tmp_path / "out.bin"

    def write_second() -> None:
        with atomic_output(out) as file:
            file.write(b"second")

    with ThreadPoolExecutor() as pool:
        with atomic_output(out) as file:
            file.write(b"the first half, ")
            second = pool.submit(write_second)
            time.sleep(0.2)
            file.write(b"the other half")
            waited = not second.done()
        second.result()

    assert waited
    assert out.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [out]


def test_where_a_file_system_has_no_locks_files_are_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(file: object, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refused)
    number = errno.ENOLCK
    with atomic_output(tmp_path / "out.bin") as file:
        file.write(b"new")

    assert (tmp_path / "out.bin").read_bytes() == b"new"
    number = errno.EIO
    with pytest.raises(OutputError, match="Input/output error"), atomic_output(tmp_path / "out.bin"):
        pass


def test_a_locked_file_is_refused_at_once_with_the_option_that_helps(tmp_path: Path) -> None:
    path = tmp_path / "m.steps"

    with locked(path, "--model"), pytest.raises(OutputError) as raised, locked(path, "--model"):
        pass

    rule = "wait for it or choose another --model"
    assert str(raised.value) == f"another run with --resume has {path} open; {rule}"
    with locked(path, "--model"):
        assert path.exists()
    with pytest.raises(OutputError, match=r"^cannot write .*: Is a directory$"), locked(tmp_path, "--model"):
        pass


def test_a_link_stays_a_link_and_the_file_behind_it_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "link.csv"
    link.symlink_to(tmp_path / "real" / "table.csv")

    with atomic_output(link) as file:
        file.write(b"new")

    assert link.is_symlink()
    assert [path.read_bytes() for path in (tmp_path / "real").iterdir()] == [b"new"]


def test_a_pipe_is_written_directly(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    with subprocess.Popen(["cat", fifo], stdout=subprocess.PIPE) as reader:
        with atomic_output(fifo) as file:
            file.write(b"data")
        received, _ = reader.communicate()

    assert received == b"data"
    assert fifo.is_fifo()


def test_dev_stdout_redirected_to_a_file_stays_the_file_of_the_shell(tmp_path: Path) -> None:
    code = (
        "import os; from pathlib import Path; from anomaly_cli.files import atomic_output\n"
        "with atomic_output(Path('/dev/stdout')) as file:\n    file.write(b'data')\n"
    )
    target = tmp_path / "redirected"

    with target.open("wb") as stdout:
        subprocess.run([sys.executable, "-c", code], stdout=stdout, check=True)
        inode = os.fstat(stdout.fileno()).st_ino

    assert target.read_bytes() == b"data"
    assert target.stat().st_ino == inode
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_in_a_folder_of_dev_is_a_file(tmp_path: Path) -> None:
    streams = [Path("/dev/null"), Path("/dev/stdout"), Path("/dev/fd/1"), tmp_path]

    assert [is_written_directly(path) for path in streams] == [True] * 4
    assert not is_written_directly(Path("/dev/shm/scores.csv"))
    assert not is_written_directly(tmp_path / "scores.csv")
