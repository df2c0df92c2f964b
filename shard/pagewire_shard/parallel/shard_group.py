"""This shard's place in a group of several ranks: how it meets the others, and what becomes of it when one is lost."""

import logging
import os
import sys
from collections.abc import Callable
from datetime import timedelta

import torch

from pagewire_shard.config import ShardConfig
from pagewire_shard.parallel.channel import GroupChannel, meet
from pagewire_shard.parallel.collectives import Collectives
from pagewire_shard.parallel.ranks import Ranks

logger = logging.getLogger(__name__)

LOST_STATUS = 1
"""Exit status of a rank that cannot go on without another."""


class ShardGroup:
    """One rank of a group. A rank that is lost takes the group down: the others end, so that whoever keeps them starts
    all of them again, and none waits in a collective for ever."""

    def __init__(self, config: ShardConfig) -> None:
        assert config.rendezvous is not None
        self.ranks = Ranks(config.tp_rank, config.tp_size, config.enable_expert_parallel)
        self._config = config
        self._rendezvous = config.rendezvous
        self._channel: GroupChannel | None = None
        self._is_leaving = False
        self.on_entry: Callable[[bytes], None] = _unexpected
        """Takes what rank 0 passes on, in order; on a thread of its own."""

    def join(self, device: torch.device) -> Collectives:
        """Meets the other ranks. Raises GroupFailed if they do not come."""
        from pagewire_shard.parallel.process_group import process_collectives
        from pagewire_shard.parallel.store import host_store, join_store

        config, ranks, rendezvous = self._config, self.ranks, self._rendezvous
        timeout = timedelta(seconds=config.rendezvous_timeout_s)
        store, greeting = host_store(rendezvous, ranks, timeout) if ranks.rank == 0 else (None, {})
        channel = self._channel = meet(rendezvous, ranks, config.group_id, greeting, config.rendezvous_timeout_s)
        if store is None:
            store = join_store(rendezvous, ranks, channel.greeting, timeout)
        channel.start(lambda entry: self.on_entry(entry), self.lose, config.group_watch_s)
        return process_collectives(store, ranks, device, channel.address)

    def say_ready(self) -> None:
        """This rank has loaded: from now on the others take its silence for its end."""
        assert self._channel is not None
        self._channel.say_ready()

    def pass_on(self, entry: bytes) -> None:
        """Sends an entry to all other ranks; only on rank 0."""
        assert self._channel is not None, "no epoch begins before the ranks have met"
        self._channel.pass_on(entry)

    def leave(self) -> None:
        """This shard stops on purpose: what becomes of the others is not its concern."""
        self._is_leaving = True
        if self._channel is not None:
            self._channel.leave()

    def lose(self, why: str) -> None:
        """Ends the process at once: no step can run without all ranks, and one that runs may never end."""
        if not self._is_leaving:
            message = f"group {self._config.group_id!r} is lost: {why}; rank {self.ranks.rank} ends"
            print(message, file=sys.stderr, flush=True)
        os._exit(0 if self._is_leaving else LOST_STATUS)


def _unexpected(entry: bytes) -> None:
    raise AssertionError("only ranks beyond 0 are sent entries")
