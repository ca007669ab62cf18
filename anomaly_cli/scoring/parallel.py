"""An ordered map on threads with bounded read-ahead."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Queue
from typing import TypeVar

import torch

AHEAD = 4  # images a worker may be ahead of the consumer; bounds memory

Item = TypeVar("Item")

Result = TypeVar("Result")

Progress = Callable[[str, int, int], None]  # phase, done, total


def worker_count() -> int:
    """Number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parallel_map(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Apply a function to items in threads and yield each result in order, even while the next item is awaited.

    Each thread runs torch on one core: several images at a time use the cores better than several cores on one
    image, and a result never depends on what was computed beside it. `items` is read in a thread of its own, at most
    `AHEAD` items per worker ahead; that thread is not waited for when it blocks on an item that is not needed any more.

    Raises:
        Exception: whatever reading `items` or the function raised.
    """
    waiting: Queue[Future[Result] | None] = Queue(workers * AHEAD)
    pool = ThreadPoolExecutor(workers, "image", initializer=torch.set_num_threads, initargs=(1,))
    closed = threading.Event()

    def feed() -> None:
        try:
            for item in items:
                waiting.put(pool.submit(function, item))
        except Exception as error:
            if closed.is_set():  # the pool takes no more items
                return
            failed: Future[Result] = Future()
            failed.set_exception(error)
            waiting.put(failed)
        waiting.put(None)

    threading.Thread(target=feed, name="items", daemon=True).start()
    try:
        while (future := waiting.get()) is not None:
            yield future.result()
    finally:
        closed.set()
        pool.shutdown(wait=True, cancel_futures=True)
        while not waiting.empty():  # so that `feed` does not wait for room
            waiting.get_nowait()
