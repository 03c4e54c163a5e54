"""Logging as the original had it."""

import logging


def configure(debug: bool, json_lines: bool = False) -> None:
    logging.basicConfig(level=logging.DEBUG if debug else logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
