"""Threads that have to be there: one that ends, for whatever reason, is named in the log and started again."""

import logging
import threading
from collections.abc import Callable

log = logging.getLogger("webhook")
LOOK_EVERY = 1.0  # s


class KeptThreads:
    """works: name of a thread → what it does; that returns only after `stop`."""

    def __init__(self, works: dict[str, Callable[[], None]]):
        self.restarted = 0
        self._works = works
        self._threads: dict[str, threading.Thread] = {}
        self._stopping = threading.Event()

    def start(self) -> None:
        """Raises RuntimeError where there is no thread to be had."""
        for name in self._works:
            self._begin(name)
        threading.Thread(target=self._keep, name="ThreadKeeper", daemon=True).start()

    def stop(self) -> None:
        """Those that end from now on have done their work."""
        self._stopping.set()

    def missing(self) -> list[str]:
        """The names of those that have ended and are not started again yet."""
        return [name for name, thread in list(self._threads.items()) if not thread.is_alive()]

    def _begin(self, name: str) -> None:
        thread = threading.Thread(target=self._run, args=(name,), name=name, daemon=True)
        thread.start()
        self._threads[name] = thread

    def _run(self, name: str) -> None:
        try:
            self._works[name]()
        except BaseException:  # SystemExit too: nobody else would hear of it
            log.exception("the thread %s failed", name)

    def _keep(self) -> None:
        while not self._stopping.wait(LOOK_EVERY):
            for name in self.missing():
                try:
                    self._begin(name)
                except (RuntimeError, MemoryError) as problem:  # no thread to be had now
                    log.error("the thread %s has ended and cannot be started again yet: %s", name, problem)
                else:
                    self.restarted += 1
                    log.error("the thread %s had ended and is started again", name)
