#!/usr/bin/env python3
"""Start the GEX bridge from a checkout, from any working directory."""

import sys

from data_pipeline.application import main

if __name__ == "__main__":
    sys.exit(main())
