"""Where ranks meet: what they open to others."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import torch
from pagewire_shard.config import ShardConfig
from pagewire_shard.parallel.collectives import Collectives
from pagewire_shard.parallel.shard_group import ShardGroup


def listening() -> set[tuple[str, int]]:
    """Addresses and ports where this process listens."""
    return {c.laddr for c in psutil.Process().net_connections("inet") if c.status == psutil.CONN_LISTEN}


def test_ranks_that_meet_at_a_unix_socket_stay_on_this_machine(tmp_path: Path) -> None:
    before = listening()
    rendezvous = f"unix:{tmp_path}/group.sock"
    groups = [ShardGroup(ShardConfig("m", "m", tp_size=2, tp_rank=i, rendezvous=rendezvous)) for i in range(2)]
    (tmp_path / "group.sock.store-old").write_bytes(b"of ranks before these")

    def join(group: ShardGroup) -> tuple[Collectives, torch.Tensor]:
        collectives = group.join(torch.device("cpu"))
        assert collectives is not None
        return collectives, collectives.all_reduce(torch.tensor([group.ranks.rank + 1.0]))

    try:
        with ThreadPoolExecutor(2) as pool:
            joined = list(pool.map(join, groups))
        assert [total.item() for _, total in joined] == [3.0, 3.0]
        assert {address for address, _ in listening() - before} <= {"127.0.0.1"}
        (store,) = tmp_path.glob("group.sock.store*")
        assert store.stat().st_mode & 0o777 == 0o600
    finally:
        for group in groups:
            group.leave()
