"""`gex-bridge serve`: the server, as `run_server.py` starts it."""

from data_pipeline import config
from data_pipeline.application import serve

HELP = "Run local GEXBot bridge server"


def add_arguments(parser) -> None:
    config.add_flags(parser)


def run(args, settings) -> int:
    return serve(settings)
