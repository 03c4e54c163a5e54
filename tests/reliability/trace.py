"""System calls of the real server and writer, as strace writes them down."""

import pathlib
import re
import shutil
import time
from dataclasses import dataclass

from tests.helpers.support import RunningBridge, eventually
from tests.reliability.load import Load
from tests.reliability.shim import Unable

CALLS = (
    "openat,close,write,pwrite64,sendto,recvfrom,fsync,fdatasync,rename,unlink,link,ftruncate,truncate,mkdir,accept4,execve,"
    "clone,clone3,vfork,fork,connect"
)
STRING_LIMIT = 8_000_000  # bytes; longer ones would be cut, and that is refused below

_LINE = re.compile(r"(\d+) +(?:(\w+)\((.*)|<\.\.\. (\w+) resumed>(.*)|\+\+\+ .*|--- .*)", re.S)
_RESULT = re.compile(r"(.*)\) += (-?\d+|\?)(?:<([^>]*)>)?", re.S)
_UNFINISHED = " <unfinished ...>"


def _bytes(escaped: str) -> bytes:
    return bytes.fromhex(escaped.replace("\\x", ""))


@dataclass(frozen=True)
class Call:
    """One system call.  began, ended: places in the order of all; result -1 for an error.

    process: the process (not the thread) that made it.
    """

    process: int
    name: str
    arguments: str
    result: int
    began: int
    ended: int

    @property
    def strings(self) -> list[bytes]:
        """What stands in quotes."""
        return [_bytes(found) for found in re.findall(r'"((?:\\x..)*)"', self.arguments)]

    @property
    def descriptor(self) -> int:
        """The first argument."""
        return int(re.match(r"\d+", self.arguments).group())

    @property
    def path(self) -> str:
        """Of the descriptor that is the first argument; or the last path among the arguments."""
        found = re.match(r"\d+<([^>]*)>", self.arguments)
        return (
            _bytes(found[1]).decode()
            if found and found[1].startswith("\\x")
            else (self.strings[-1].decode() if not found and self.strings else "")
        )

    @property
    def offset(self) -> int:
        """The last argument."""
        return int(self.arguments.rpartition(", ")[2])


class Trace:
    """`calls` in the order of their ends; `server` is the server's process id."""

    def __init__(self, text: str, offset: int = 0):
        self.calls: list[Call] = []
        self._groups: dict[int, int] = {}
        self.server = int(text.split(None, 1)[0])
        for process, name, arguments, result, began, ended in list(_whole(text)):
            if name in ("clone", "clone3", "vfork", "fork") and result > 0:
                is_thread = "CLONE_THREAD" in arguments
                self._groups[result] = self._group(process) if is_thread else result
        for process, name, arguments, result, began, ended in _whole(text):
            assert '"...' not in arguments, f"{name} has a longer string than was written down"
            self.calls.append(Call(self._group(process), name, arguments, result, began + offset, ended + offset))
        self.end = offset + text.count("\n")

    def _group(self, thread: int) -> int:
        return self._groups.get(thread, thread)


def _whole(text: str):
    """Each call, those put together that were cut in two: (thread, name, arguments, result, began, ended)."""
    open_calls: dict[int, tuple[str, str, int]] = {}
    for place, line in enumerate(text.splitlines()):
        found = _LINE.fullmatch(line)
        if not found or not (found[2] or found[4]):
            continue
        thread, began = int(found[1]), place
        name, rest = found[2] or found[4], found[3] if found[2] else found[5]
        if found[4]:
            if thread not in open_calls:
                continue
            _, first, began = open_calls.pop(thread)
            rest = first + rest
        if rest.endswith(_UNFINISHED):
            open_calls[thread] = (name, rest[: -len(_UNFINISHED)], began)
            continue
        if done := _RESULT.match(rest):
            yield thread, name, done[1], -1 if done[2] == "?" else int(done[2]), began, place
    for thread, (name, arguments, began) in open_calls.items():
        yield thread, name, arguments, -1, began, 1 << 60  # it never came back


def traced(data_dir: pathlib.Path, output: pathlib.Path, **environment: str) -> RunningBridge:
    """A bridge under strace.  Raises Unable where there is none."""
    if shutil.which("strace") is None:
        raise Unable("there is no strace")
    bridge = RunningBridge(data_dir, **environment)
    # -D: the bridge itself is our child, not strace.
    bridge.wrapper = (
        "strace",
        "-D",
        "-f",
        "-y",
        "-q",
        "-xx",
        "--seccomp-bpf",
        "-s",
        str(STRING_LIMIT),
        "-e",
        f"trace={CALLS}",
        "-e",
        "signal=none",
        "-o",
        str(output),
    )
    return bridge


def record(folder: pathlib.Path, posts: int) -> tuple[list[Trace], list[Load]]:
    """Two lives of a bridge under load, the first ended by a kill, the second by SIGTERM; `posts` accepted in each."""
    traces, loads, end = [], [], 0
    for life in range(2):
        output = folder / f"trace-{life}"
        bridge = traced(folder / "data", output, LOAD_INTERVAL="0.05", STOP_TIMEOUT="60").start()
        load = Load(bridge, clients=4, first=life * 1_000_000, pause=0.02 * life).start()
        # The second life is long enough for the writer to come by what it might let go too early.
        enough = time.monotonic() + 2.5 * life
        eventually(lambda: load.count >= posts and time.monotonic() > enough, "load gets through", patience=120)
        if life == 0:
            bridge.kill()
        load.stop()
        code = bridge.stop()
        assert life == 0 or code == 0, bridge.complaints
        assert not load.refused
        # The writer may end after the server, and strace after both.
        eventually(lambda: has_ended(output), "strace has written everything down")
        traces.append(Trace(output.read_text(), end))
        end = traces[-1].end
        loads.append(load)
    return traces, loads


def has_ended(output: pathlib.Path) -> bool:
    return not any(str(output) in _command_line(path) for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"))


def _command_line(path: pathlib.Path) -> str:
    try:
        return path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        return ""
