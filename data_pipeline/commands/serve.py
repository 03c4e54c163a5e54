"""`gex-bridge serve`: the server; `run_server.py` is the same under the original's name."""

import argparse

from data_pipeline import __version__, config
from data_pipeline.application import serve

HELP = "Run local GEXBot bridge server"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The original's flags, and those of further settings."""
    config.add_flags(parser)
    parser.add_argument("--version", action="version", version=f"gex-bridge {__version__}")


def run(args: argparse.Namespace, settings: config.Settings) -> int:
    """Until it is told to stop; returns the exit code."""
    return serve(settings)
