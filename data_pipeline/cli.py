"""The command `gex-bridge`: one table of subcommands, each in a module of `commands`.

A module of `commands` has `HELP` (one line), `add_arguments(parser)` and
`run(args, settings) -> int`.  Data goes to standard output, messages to
standard error.  Exit codes: 0 well, 1 it could not be done, 2 it was asked
wrongly.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Iterable

from data_pipeline import BridgeError, __version__, config

# subcommand -> module of data_pipeline.commands
COMMANDS = {
    "serve": "serve",
    "demo": "demo",
    "migrate": "migrate",
    "export-sqlite": "export_sqlite",
    "systemd-unit": "systemd_unit",
    "status": "status",
    "check": "check",
    "doctor": "doctor",
    "import": "import_history",
    "history": "history",
    "archive": "archive",
    "help": "help",
}


def parser(names: Iterable[str] = COMMANDS) -> argparse.ArgumentParser:
    """The whole command line; `names` limits which subcommands are imported."""
    top = argparse.ArgumentParser(prog="gex-bridge", description="The GEX bridge and its tools")
    top.add_argument("--version", action="version", version=f"gex-bridge {__version__}")
    sub = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        if name not in names:
            sub.add_parser(name)
            continue
        module = importlib.import_module(f"data_pipeline.commands.{COMMANDS[name]}")
        one = sub.add_parser(
            name,
            help=module.HELP,
            description=module.HELP,
            epilog=config.environment_help(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(one)
    return top


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand; returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    wanted = [a for a in argv[:1] if a in COMMANDS]
    args = parser(wanted or COMMANDS).parse_args(argv)
    module = importlib.import_module(f"data_pipeline.commands.{COMMANDS[args.command]}")
    try:
        code: int = module.run(args, config.load(args))
        return code
    except BridgeError as problem:
        print(f"gex-bridge: {problem}", file=sys.stderr)
        return problem.exit_code
    except BrokenPipeError:
        # Whoever read our output has enough (`| head`); nothing is to be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
