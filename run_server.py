#!/usr/bin/env python3
"""Start the GEX bridge from a checkout, from any working directory."""

import sys

from data_pipeline.cli import main

if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))
