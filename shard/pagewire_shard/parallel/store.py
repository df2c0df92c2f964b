"""The torch.distributed.Store where the collectives of the ranks find each other; rank 0 hosts it.

Ranks that meet at a Unix socket are on one machine. Their store is a file beside the socket, so that the folder's
permissions guard both. For ranks of several machines rank 0 opens a port, which anyone can use who reaches it.
"""

import os
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

from pagewire_shard.parallel.process_group import dist
from pagewire_shard.parallel.ranks import Ranks

UNIX = "unix:"


def host_store(rendezvous: str, ranks: Ranks, timeout: timedelta) -> tuple[Any, dict[str, Any]]:
    """Rank 0's store, and what the others must know of it. Raises OSError."""
    if rendezvous.startswith(UNIX):
        path = _new_file(Path(rendezvous.removeprefix(UNIX)))
        return _file_store(path, ranks, timeout), {"store_file": path.name}
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timeout)
    return store, {"store_port": store.port}


def join_store(rendezvous: str, ranks: Ranks, greeting: dict[str, Any], timeout: timedelta) -> Any:
    """The same store on another rank."""
    if rendezvous.startswith(UNIX):
        return _file_store(Path(rendezvous.removeprefix(UNIX)).with_name(greeting["store_file"]), ranks, timeout)
    return dist.TCPStore(rendezvous.rpartition(":")[0].strip("[]"), greeting["store_port"], timeout=timeout)


def _new_file(socket: Path) -> Path:
    """An empty file that only this user can open, of a new name: ranks of an earlier group may not have ended yet."""
    prefix = f"{socket.name}.store-"
    for old in socket.parent.glob(f"{prefix}*"):
        old.unlink(missing_ok=True)
    descriptor, path = tempfile.mkstemp(prefix=prefix, dir=socket.parent)
    os.close(descriptor)
    return Path(path)


def _file_store(path: Path, ranks: Ranks, timeout: timedelta) -> Any:
    store = dist.FileStore(str(path), ranks.size)
    store.set_timeout(timeout)
    return store
