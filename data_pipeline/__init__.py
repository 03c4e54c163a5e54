"""The GEX bridge: catches gamma-exposure payloads and keeps every one of them."""

__version__ = "2.0.0"
