"""A program `anomaly` for shell scripts that starts at once: a server that has torch imported forks for each call.

The program hands its arguments, folder, environment and standard streams to the server, and ends as the forked process
does, by exit code or signal.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CLIENT = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    request = [{code!r}, sys.argv, os.getcwd(), dict(os.environ)]
    socket.send_fds(server, [json.dumps(request).encode() + b"\\n"], [0, 1, 2])
    status = int(server.recv(16))
if os.WIFSIGNALED(status):
    os.kill(os.getpid(), os.WTERMSIG(status))
sys.exit(os.WEXITSTATUS(status))
"""
COMMAND = "from anomaly_cli.cli import app; app(prog_name='anomaly')"
STREAMS = 3


@contextmanager
def command_server(folder: Path) -> Iterator[Path]:
    """Listen at a socket in a folder; commands that still run at the end are left alone."""
    address = folder / "server"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.fspath(address))
        listening.listen()
        process = multiprocessing.get_context("forkserver").Process(target=_serve, args=(listening,), daemon=True)
        process.start()
    yield address
    process.terminate()
    process.join()


def write_client(address: Path, folder: Path, code: str = COMMAND) -> Path:
    """Put a program `anomaly` into a new folder, which runs this code in a fork of the server; the folder."""
    folder.mkdir()
    program = folder / "anomaly"
    program.write_text(CLIENT.format(python=sys.executable, address=os.fspath(address), code=code))
    program.chmod(0o755)
    return folder


def _serve(listening: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the handlers
    while True:
        connection, _ = listening.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listening.close()
            _answer(connection)
        connection.close()


def _answer(connection: socket.socket) -> None:
    """Run one command in a process of its own and send how it ended."""
    message, streams, _, _ = socket.recv_fds(connection, 2**16, STREAMS)
    while not message.endswith(b"\n"):
        message += connection.recv(2**16)
    child = os.fork()
    if child == 0:
        connection.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        code, sys.argv, folder, environment = json.loads(message)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.stdin = os.fdopen(0, closefd=False)
        exec(code, {"__name__": "__main__"})
        sys.exit()
    _, status = os.waitpid(child, 0)
    connection.sendall(str(status).encode())
    os._exit(0)
