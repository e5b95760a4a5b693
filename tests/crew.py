"""A crew: processes that are started once and run functions together, each time over a fresh gloo group."""

from __future__ import annotations

import multiprocessing
import queue
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

Call = Callable[..., Any]

_PATIENCE = timedelta(seconds=60)
_BOOT_SECONDS = 400


class HangError(AssertionError):
    """Not every rank came back in time."""


class Crew:
    """Up to four processes; those that are needed are started when they are first needed.

    A function is called on each rank with `rank`, `size` and what else was given; the default process group is there.
    They are forks of a server that has imported what they need: torch is loaded once, not once for each of them.
    """

    def __init__(self) -> None:
        self._context: Any = multiprocessing.get_context("spawn")
        if "forkserver" in multiprocessing.get_all_start_methods():
            self._context = multiprocessing.get_context("forkserver")
            self._context.set_forkserver_preload(["tests.ranks.trainers"])
        self._orders: list[Any] = []
        self._processes: list[Any] = []
        self._ready: list[Any] = []
        self._results: Any = self._context.Queue()

    def run(self, function: Call, size: int, *, timeout: float = 120, **arguments: Any) -> list[Any]:
        """Return what a function returns on each rank; one that raises there raises here.

        Raises:
            HangError: some rank did not come back within `timeout` seconds; the processes are killed.
        """
        while len(self._processes) < size:
            self._start()
        until = time.monotonic() + _BOOT_SECONDS  # to import torch takes long on a busy machine, and is no hang
        for process, is_ready in zip(self._processes, self._ready, strict=True):
            while not is_ready.wait(1):
                assert process.is_alive(), "a process ended before it could begin"
                assert time.monotonic() < until, "a process did not start"
        with tempfile.TemporaryDirectory() as folder:
            store = f"{folder}/store"
            for rank in range(size):
                self._orders[rank].put((function, rank, size, store, arguments))
            return self._collect(function, size, timeout)

    def _collect(self, function: Call, size: int, timeout: float) -> list[Any]:
        results: dict[int, Any] = {}
        errors: dict[int, str] = {}
        until = time.monotonic() + timeout
        while len(results) + len(errors) < size:
            try:
                rank, result, error = self._results.get(timeout=max(until - time.monotonic(), 0.01))
            except queue.Empty:
                missing = sorted(set(range(size)) - set(results) - set(errors))
                self.dismiss()
                raise HangError(f"{function.__name__}: ranks {missing} of {size} did not return; {errors}") from None
            if error:
                errors[rank] = error
            else:
                results[rank] = result
        if errors:
            raise AssertionError("\n".join(f"rank {rank}: {error}" for rank, error in sorted(errors.items())))
        return [results[rank] for rank in range(size)]

    def _start(self) -> None:
        orders = self._context.Queue()
        is_ready = self._context.Event()
        process = self._context.Process(target=_serve, args=(orders, self._results, is_ready), daemon=True)
        process.start()
        self._ready.append(is_ready)
        self._orders.append(orders)
        self._processes.append(process)

    def dismiss(self) -> None:
        """Kill the processes; the next run starts new ones."""
        for process in self._processes:
            process.kill()
            process.join()
        self._processes, self._orders, self._ready = [], [], []
        self._results = self._context.Queue()


def _serve(orders: Any, results: Any, is_ready: Any) -> None:
    import torch
    import torch.distributed as dist

    import tests.ranks.trainers  # noqa: F401 - most of what is run needs it, and to load it takes longest

    torch.set_num_threads(1)
    is_ready.set()
    while True:
        function, rank, size, store, arguments = orders.get()
        result, error = None, ""
        try:
            dist.init_process_group(
                "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=_PATIENCE
            )
            result = function(rank=rank, size=size, **arguments)
        except BaseException:
            error = traceback.format_exc()
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
        results.put((rank, result, error))
