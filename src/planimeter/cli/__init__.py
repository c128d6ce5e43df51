"""The `planimeter` command: one file a command; each parses, calls and prints."""

from planimeter.cli.app import app, main

__all__ = ["app", "main"]
