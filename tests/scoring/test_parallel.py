"""The ordered map on threads: order, read-ahead, errors, and an end that leaves no thread behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from queue import Queue

import pytest
import torch

from anomaly_cli.scoring import parallel
from anomaly_cli.scoring.parallel import parallel_map


def test_results_keep_the_order_of_arrival_whatever_each_takes() -> None:
    takes = [0.06, 0.0, 0.03, 0.0, 0.05, 0.0]

    def wait(index: int) -> int:
        time.sleep(takes[index])
        return index

    assert list(parallel_map(wait, range(6), workers=3)) == list(range(6))


def test_a_result_is_there_while_the_next_item_is_still_awaited() -> None:
    items: Queue[int | None] = Queue()
    results = parallel_map(abs, iter(items.get, None), workers=2)

    for item in (-1, -2, -3):
        items.put(item)
        assert next(results) == -item

    items.put(None)
    assert list(results) == []


def test_no_more_items_are_taken_than_a_few_ahead() -> None:
    taken = []

    def endless() -> Iterator[int]:
        while True:
            taken.append(1)
            yield len(taken)

    results = parallel_map(abs, endless(), workers=2)
    assert next(results) == 1
    time.sleep(0.1)

    assert len(taken) <= 2 * parallel.AHEAD + 3


def test_errors_of_items_and_of_the_function_reach_the_reader_in_their_turn() -> None:
    def two_then_error() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("no more")

    results = parallel_map(abs, two_then_error(), workers=2)

    assert (next(results), next(results)) == (1, 2)
    with pytest.raises(OSError, match="no more"):
        next(results)
    with pytest.raises(ZeroDivisionError):
        list(parallel_map(lambda item: 1 // item, [1, 0], workers=1))


def test_every_thread_computes_on_one_core() -> None:
    def cores(_: int) -> int:
        return torch.get_num_threads()

    assert set(parallel_map(cores, range(4), workers=2)) == {1}


def test_a_map_that_is_closed_early_leaves_no_thread_even_within_another() -> None:
    before = set(threading.enumerate())
    inner = parallel_map(abs, range(10_000), workers=2)
    outer = parallel_map(abs, inner, workers=1)
    del inner
    assert next(outer) == 0

    outer.close()  # type: ignore[attr-defined]
    del outer

    deadline = time.monotonic() + 10
    while left := set(threading.enumerate()) - before:
        assert time.monotonic() < deadline, left
        time.sleep(0.01)
