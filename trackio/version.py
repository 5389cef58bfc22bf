"""The version, and the upstream release whose surface it matches."""

__version__ = "1.0.0"
__upstream__ = "0.43"
