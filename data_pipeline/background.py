"""What the background threads have in common: they begin with `start`, are asked to end by `stop`, and say if they did."""

import threading


class Background:
    """Something that runs `_run` on a daemon thread of its own until `_stopping` is set."""

    def __init__(self, name: str):
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float) -> bool:
        """Ask it to end, and wait; True if it has ended within `timeout` seconds, or was never started."""
        self._stopping.set()
        self._wake()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _wake(self) -> None:
        """Called when it is to end, for what waits for something else than `_stopping`."""

    def _run(self) -> None:
        raise NotImplementedError
