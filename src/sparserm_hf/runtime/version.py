"""The version of the package, in a file of its own, so that setup.cfg reads it without other imports."""

__version__ = "0.7.0"
