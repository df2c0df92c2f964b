"""The directory where numba keeps compiled kernels between processes.

numba looks only at the file that holds a function to tell whether its cached machine code is fresh, but a kernel is
inlined from several files. So the cache lies in a directory named after the content of all of them, which also works
where the package itself is installed read-only.
"""

import hashlib
import os
import tempfile
from pathlib import Path

from numba import config
from numba.misc.appdirs import user_cache_dir

_PACKAGE = Path(__file__).parent.parent


def use_compile_cache() -> None:
    """Points numba at the cache of this version of the kernels, below NUMBA_CACHE_DIR if that is set."""
    name = f"pagewire-kernels-{source_digest()}"
    if config.CACHE_DIR:
        parents = [Path(config.CACHE_DIR)]
    else:
        parents = [Path(user_cache_dir("pagewire")), Path(tempfile.gettempdir()) / f"pagewire-{os.getuid()}"]
    for parent in parents:
        directory = parent / name
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            continue
        # numba unpickles the files it finds, so another user's directory must not be used.
        if directory.stat().st_uid == os.getuid() and os.access(directory, os.W_OK):
            config.CACHE_DIR = str(directory)
            return


def source_digest() -> str:
    """A short hash of the package's source files."""
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
