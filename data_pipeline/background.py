"""What the background threads have in common, and how a process of our own is started beside this one."""

import os
import pathlib
import sys
import threading


class Background:
    """Something that runs `_run` on a daemon thread of its own until `_stopping` is set."""

    def __init__(self, name: str):
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin.  Raises RuntimeError where the system gives no thread."""
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


def child_command(module: str, *arguments: str) -> list[str]:
    """Runs a module of this package; to be started with `child_environment`.

    -P: Python would put the working directory before everything else, and a
    `csv.py` that lies there would be imported instead of Python's own.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def child_environment() -> dict[str, str]:
    """This process's environment, in which a child finds the package from any folder; relative paths go, as with -P."""
    package = str(pathlib.Path(__file__).resolve().parents[1])
    others = filter(os.path.isabs, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    return {**os.environ, "PYTHONPATH": os.pathsep.join([package, *others])}
