"""The error that a user can mend."""


class SparseRMError(ValueError):
    """Something given is wrong; the message says what was given, what is needed and how to mend it."""
