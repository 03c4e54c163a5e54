"""The GEX bridge: catches gamma-exposure payloads and keeps every one of them."""

__version__ = "2.0.0"


class BridgeError(Exception):
    """Something that the operator meets; its text is one line that says what is wrong and what to do.

    The command line prints it and ends with `exit_code`: 1 where a thing could
    not be done, 2 where it was asked for wrongly.
    """

    exit_code = 1
