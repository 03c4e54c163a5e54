"""`python -m tests.reliability [NAME…] [--rounds N]`: the batteries, each with one line that says what came out."""

import argparse
import importlib
import logging
import pathlib
import sys
import tempfile
import time
import traceback

from tests.reliability.shim import Unable

BATTERIES = (
    "crash",
    "order",
    "full-disk",
    "disk-model",
    "damage",
    "stop",
    "others",
    "hostile",
    "nowhere-else",
    "long-run",
)


def battery(name: str):
    """The module of a battery: ROUNDS, SHORT, and run(rounds, folder) -> the figures, or AssertionError."""
    return importlib.import_module(f"tests.reliability.{name.replace('-', '_')}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.reliability", description="Prove what the README promises.")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", default=[], help=f"of {', '.join(BATTERIES)}; all by default"
    )
    parser.add_argument("--rounds", type=int, help="how many; each battery has its own number by default")
    parser.add_argument(
        "--keep", type=pathlib.Path, help="folder for data and logs, which stay there; else a temporary one"
    )
    args = parser.parse_args()
    if unknown := set(args.names) - set(BATTERIES):
        parser.error(f"no battery named {', '.join(sorted(unknown))}")
    # What the parts say that run in this process; a bridge's log is a file.
    logging.getLogger("webhook").addHandler(logging.NullHandler())
    failed = 0
    for name in args.names or BATTERIES:
        module, began = battery(name), time.monotonic()
        with tempfile.TemporaryDirectory(prefix=f"gex-bridge-{name}-") as temporary:
            folder = args.keep / name if args.keep else pathlib.Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            try:
                said = module.run(args.rounds or module.ROUNDS, folder)
            except Unable as reason:
                said = f"cannot run here: {reason}"
            except AssertionError as problem:
                where = traceback.extract_tb(problem.__traceback__)[-1]
                failed, said = failed + 1, f"FAILED: {problem or where.line}"
        print(f"{name}: {said} ({time.monotonic() - began:.0f} s)", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
