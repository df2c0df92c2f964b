"""The version that metrics and traces carry."""

from functools import cache
from importlib import metadata

DISTRIBUTION = "pagewire"


@cache
def version() -> str:
    """Returns the installed distribution's version; "unknown" if the sources are only on the path."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "unknown"
