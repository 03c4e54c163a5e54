"""`shim.c`, compiled: what makes a real process die at, or fail, a marked system call."""

import functools
import os
import pathlib
import shutil
import subprocess
import tempfile

SOURCE = pathlib.Path(__file__).with_name("shim.c")


class Unable(Exception):
    """This machine lacks what a battery needs; the text says what."""


@functools.cache
def library() -> pathlib.Path:
    """The compiled shim.  Raises Unable without a C compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise Unable("there is no C compiler")
    made = pathlib.Path(tempfile.gettempdir()) / f"gex-bridge-shim-{os.getuid()}-{SOURCE.stat().st_mtime_ns}.so"
    if not made.exists():
        temporary = made.with_suffix(f".{os.getpid()}")
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", temporary, SOURCE], check=True)
        temporary.replace(made)
    return made


def environment(*rules: str, switch: pathlib.Path | None = None) -> dict[str, str]:
    """Environment variables for a RunningBridge; see shim.c for rules and switch."""
    made = {"LD_PRELOAD": str(library()), "SHIM_RULES": ";".join(rules)}
    return {**made, "SHIM_SWITCH": str(switch)} if switch else made
