"""Damage a model file in thousands of ways: `python -m benchmarks.robustness.model_fuzzing --mutations 2000 --seeds 0`.

Each damaged file is read as `score` and `info` read it, in one process whose memory is limited, and a sample of them
by the command itself. A file must be refused by one line that names it, or be the model that it was. Exits with 1
where one is not. This module imports no torch: the limit counts what its parent shares.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.robustness.malformed import COMMAND, train_model

Maker = Callable[[np.random.Generator, bytes], bytes]
MEMORY = 4 * 2**30  # bytes of address space; torch alone reserves more than one GiB
SAMPLE = 40  # of the mutations that the command itself is given
TERABYTES = (2**40, 2**43, 2**62, 2**63, 2**64 - 1)
KEY = "anomaly"  # of the document of ours in the header of the file
# Reads each file named on stdin, as the commands do, and answers with a line of JSON.
READER = """
import json, resource, sys, time
from pathlib import Path
from anomaly_cli.detector.checkpoint import load_model, read_header
from anomaly_cli.errors import CheckpointError
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
for line in sys.stdin:
    path, answers, started = Path(line.rstrip()), [], time.perf_counter()
    for read in (load_model, read_header):
        try:
            read(path)
            answers.append("read")
        except CheckpointError as error:
            answers.append(str(error))
        except BaseException as error:
            answers.append(f"CRASH {type(error).__name__}: {error}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps([answers, time.perf_counter() - started, peak]), flush=True)
"""


def _split(content: bytes) -> tuple[dict[str, object], bytes]:
    length = int.from_bytes(content[:8], "little")
    header: dict[str, object] = json.loads(content[8 : 8 + length])
    return header, content[8 + length :]


def _joined(header: object, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def flipped(rng: np.random.Generator, content: bytes) -> bytes:
    """Flip a few bits, half of them in the header."""
    end = 8 + int.from_bytes(content[:8], "little")
    damaged = bytearray(content)
    for _ in range(2 ** rng.integers(4)):
        damaged[rng.integers(end if rng.random() < 0.5 else len(content))] ^= 1 << rng.integers(8)
    return bytes(damaged)


def cut(rng: np.random.Generator, content: bytes) -> bytes:
    """Cut the file short, or append to it."""
    return content[: rng.integers(len(content))] if rng.random() < 0.8 else content + rng.bytes(int(rng.integers(99)))


def wrong_length(rng: np.random.Generator, content: bytes) -> bytes:
    """Claim another length of the header: terabytes, a little more, a little less, anything."""
    true = int.from_bytes(content[:8], "little")
    near = max(0, true + int(rng.integers(-50, 50)))
    claimed = (*TERABYTES, near, int(rng.integers(2**40)), 0)[rng.integers(len(TERABYTES) + 3)]
    return struct.pack("<Q", claimed) + content[8:]


def deep(rng: np.random.Generator, content: bytes) -> bytes:
    """Nest lists or objects thousands of levels deep, as the header or as the document of ours within it."""
    depth = int(2 ** rng.uniform(8, 18))
    text = "[" * depth + "]" * depth if rng.random() < 0.5 else '{"a":' * depth + "1" + "}" * depth
    if rng.random() < 0.5:
        return struct.pack("<Q", len(text)) + text.encode() + content[-1000:]
    header, data = _split(content)
    return _joined({**header, "__metadata__": {KEY: text}}, data)


def wrong_tensor(rng: np.random.Generator, content: bytes) -> bytes:
    """Change shape, type or place of a tensor in the header: terabytes, negative, overlapping, unknown."""
    header, data = _split(content)
    names = [name for name in header if name != "__metadata__"]
    name = names[rng.integers(len(names))]
    entry = json.loads(json.dumps(header[name]))
    big = int((2**40, 2**62, 2**64 - 1, 0, -1)[rng.integers(5)])
    kind = rng.integers(4)
    if kind == 0:
        entry["shape"] = [[big], [big, big], [], [1] * 1000, [*entry["shape"][::-1], 1]][rng.integers(5)]
    elif kind == 1:
        entry["dtype"] = ["F64", "I64", "BOOL", "F8_E4M3", "U8", "X", None, 7][rng.integers(8)]
    elif kind == 2:
        entry["data_offsets"] = [[0, big], [big, 0], [big, big], [0], None][rng.integers(5)]
    else:
        entry = [None, [], 3, "tensor", {}][rng.integers(5)]
    return _joined({**header, name: entry}, data)


def wrong_document(rng: np.random.Generator, content: bytes) -> bytes:
    """Replace any value in the document of ours: of another kind, not finite, enormous, or gone."""
    header, data = _split(content)
    metadata = header["__metadata__"]
    assert isinstance(metadata, dict)
    document = json.loads(metadata[KEY])
    values: tuple[object, ...] = (
        None, [], {}, "", "x" * 10**6, 1e308, float("nan"), float("inf"), -1, 10**30, True, [[1.0]],
    )  # fmt: skip
    outer, inner, key = document, document, None
    while isinstance(inner, dict | list) and inner and (key is None or rng.random() < 0.8):
        key = list(inner)[rng.integers(len(inner))] if isinstance(inner, dict) else int(rng.integers(len(inner)))
        outer, inner = inner, inner[key]
    outer[key] = values[rng.integers(len(values))]
    return _joined({**header, "__metadata__": {KEY: json.dumps(document)}}, data)


def same_model(one: bytes, other: bytes) -> bool:
    """Tell whether two files hold the same, perhaps in other words: 1E-05 for 1e-05."""
    try:
        (header, data), (other_header, other_data) = _split(one), _split(other)
        documents = [json.loads(each.pop("__metadata__")[KEY]) for each in (header, other_header)]  # type: ignore[index]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False
    return (header, data, documents[0]) == (other_header, other_data, documents[1])


def foreign(rng: np.random.Generator, content: bytes) -> bytes:
    """Give what is no model: nothing, noise, a pickle that would run code, an archive, JSON."""
    pickle = b"cos\nsystem\n(S'touch " + os.fsencode(_trap()) + b"'\ntR."
    others = (b"", bytes(9), pickle, b"PK\3\4" + pickle, b"{}", content[8:], rng.bytes(int(rng.integers(1, 5000))))
    return others[rng.integers(len(others))]


def _trap() -> Path:
    """File that would be there if code in a model file had been run."""
    return Path(tempfile.gettempdir()) / "anomaly-model-fuzzing-ran-code"


MUTATIONS: dict[str, Maker] = {
    maker.__name__.replace("_", " "): maker
    for maker in (flipped, cut, wrong_length, deep, wrong_tensor, wrong_document, foreign)
}


def mutated(content: bytes, number: int, seed: int) -> tuple[str, bytes]:
    """Make the mutation of a number: its kind and the content of the file."""
    kind, maker = list(MUTATIONS.items())[number % len(MUTATIONS)]
    return kind, maker(np.random.default_rng([seed, number]), content)


class Reader:
    """A process of limited memory that reads model files."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", READER, str(MEMORY)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.peak_mb = 0.0
        self.slowest_s = 0.0

    def answers(self, path: Path) -> list[str]:
        """Tell what `load_model` and `read_header` said: the message, `read`, or `CRASH` and what happened."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{path}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            return [f"CRASH the process ended with {self.process.wait()}"]
        found, took_s, peak = json.loads(line)
        self.peak_mb, self.slowest_s = peak / 1024, max(self.slowest_s, took_s)
        return [str(answer) for answer in found]

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def wrong_answers(answers: list[str], path: Path, *, unchanged: bool) -> list[str]:
    """Pick the answers that should not be: anything but one line with the path, or a model read that is another."""
    refused = [answer.count(str(path)) == 1 and "\n" not in answer and "CRASH" not in answer for answer in answers]
    return [
        answer for answer, good in zip(answers, refused, strict=True) if not (good or (unchanged and answer == "read"))
    ]


def run_command(path: Path) -> str:
    """Give the file to `anomaly info` under the same limit; return what is wrong with its end, or nothing."""
    limit = (MEMORY, MEMORY)
    result = subprocess.run(
        [*COMMAND, "info", path],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, limit),
    )
    lines = result.stderr.splitlines()
    good = result.returncode == 1 and not result.stdout and len(lines) == 1 and lines[0].startswith("error: ")
    return "" if good else f"exit code {result.returncode}, {result.stderr[-300:]}"


def main() -> None:
    """Damage, read, count, and print what was not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=2000, help="a seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    said: Counter[str] = Counter()
    wrong = commands = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        content = train_model(folder).read_bytes()
        path, reader = folder / "damaged.safetensors", Reader()
        for seed in args.seeds:
            for number in range(args.mutations):
                kind, damaged = mutated(content, number, seed)
                path.write_bytes(damaged)
                answers = reader.answers(path)
                said.update(answer.replace(str(path), "FILE") for answer in answers)
                bad = wrong_answers(answers, path, unchanged=same_model(damaged, content))
                if number % (args.mutations // SAMPLE or 1) == 0 and "read" not in answers:
                    commands += 1
                    bad += [answer] if (answer := run_command(path)) else []
                wrong += bool(bad)
                for answer in bad:
                    print(f"seed {seed}, mutation {number}, {kind}: {answer}", flush=True)
        reader.close()
    for answer, count in said.most_common():
        print(f"{count:6d}  {answer[:150]}")
    print(
        f"{args.mutations * len(args.seeds)} mutations, {wrong} not refused as they should be, {commands} "
        f"of them given to the command; slowest {reader.slowest_s:.2f} s, peak {reader.peak_mb:.0f} MB; "
        f"code was {'RUN' if _trap().exists() else 'not run'}"
    )
    sys.exit(bool(wrong) or _trap().exists())


if __name__ == "__main__":
    main()
