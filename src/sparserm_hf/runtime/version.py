"""The version, alone in a file so that nothing is imported to read it."""

__version__ = "0.3.0"
