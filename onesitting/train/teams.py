"""Threads beside the one that computes, such that it keeps its speed.

PyTorch shares an operation among a team of OpenMP threads, one for each core, which wait for the next operation
awake. Every thread of the program that runs a large operation gets a team, for as long as it lives, and once the
process has more of such threads than cores, OpenMP lets all of them wait asleep. Waking them takes longer than many an
operation: with a second team on two cores, training steps took 1.4 to 1.6 times as long and decoding one text twice
(docs/log.md). So one thread computes, and the others do their work without a team or end before it begins.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")


def worker_without_team(name: str, begin: Callable[[], object] = int) -> ThreadPoolExecutor:
    """A pool of one thread, in which each operation of PyTorch takes one core. begin: what the thread does first."""

    def settle() -> None:
        begin()
        torch.get_num_threads()  # the first question sets a thread's number, which later ones would undo
        torch.set_num_threads(1)

    n_threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(1, thread_name_prefix=name, initializer=settle)
    pool.submit(int).result()  # the thread is there
    torch.set_num_threads(n_threads)  # it set the number for threads to come, too
    return pool


def in_passing_thread(work: Callable[[], T]) -> T:
    """What `work` gives, done in a thread that ends with it, as its team does: for callers that compute nothing."""
    with ThreadPoolExecutor(1, thread_name_prefix="passing") as pool:
        return pool.submit(work).result()
