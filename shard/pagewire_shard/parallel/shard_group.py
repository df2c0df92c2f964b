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
from pagewire_shard.parallel.pipeline import Pipeline, StageLinks, TokenMail
from pagewire_shard.parallel.ranks import Ranks
from pagewire_shard.parallel.stage import Stage

logger = logging.getLogger(__name__)

LOST_STATUS = 1
"""Exit status of a rank that cannot go on without another."""


class ShardGroup:
    """One rank of a group. A rank that is lost takes the group down: the others end, so that whoever keeps them starts
    all of them again, and none waits in a collective for ever."""

    def __init__(self, config: ShardConfig) -> None:
        assert config.rendezvous is not None
        self.ranks = Ranks(config.tp_rank, config.tp_size, config.enable_expert_parallel)
        """Those that share the model, or its stage, out."""
        self.stage = Stage(config.pp_rank, config.pp_size)
        # The last stage's ranks come first: rank 0 is told the plans and tells the tokens.
        number = (config.pp_size - 1 - config.pp_rank) * config.tp_size + config.tp_rank
        self.place = Ranks(number, config.tp_size * config.pp_size)
        """Among all ranks of the group."""
        self._pipeline: Pipeline | None = None
        """Set when the ranks have met; None: there is one stage."""
        self._mail = TokenMail()
        self._config = config
        self._rendezvous = config.rendezvous
        self._channel: GroupChannel | None = None
        self._is_leaving = False
        self.on_entry: Callable[[bytes], None] = _unexpected
        """Takes what rank 0 passes on, in order; on a thread of its own."""

    @property
    def is_leader(self) -> bool:
        """This is rank 0, which is told the plans and reports tokens."""
        return self.place.rank == 0

    def join(self, device: torch.device) -> Collectives | None:
        """Meets the other ranks. Raises GroupFailed if they do not come.

        Returns the collectives of the ranks that share the stage out; None: it has one rank.
        """
        from pagewire_shard.parallel.process_group import dist, process_collectives
        from pagewire_shard.parallel.store import host_store, join_store

        config, ranks, rendezvous = self._config, self.place, self._rendezvous
        timeout = timedelta(seconds=config.rendezvous_timeout_s)
        store, greeting = host_store(rendezvous, ranks, timeout) if ranks.rank == 0 else (None, {})
        channel = self._channel = meet(rendezvous, ranks, config.group_id, greeting, config.rendezvous_timeout_s)
        if store is None:
            store = join_store(rendezvous, ranks, channel.greeting, timeout)
        on_tokens = _ignore if self.stage.is_last else self._mail.put
        channel.start(lambda entry: self.on_entry(entry), self.lose, config.group_watch_s, on_tokens)
        if not self.stage.is_alone:
            from pagewire_shard.parallel.process_pipeline import process_pipeline

            of_part = dist.PrefixStore(f"part {self.ranks.rank}", store)
            self._pipeline = process_pipeline(of_part, self.stage, device, channel.address)
        if self.ranks.is_alone:
            return None
        return process_collectives(
            dist.PrefixStore(f"stage {self.stage.index}", store), self.ranks, device, channel.address
        )

    def least(self, value: int, device: torch.device, collectives: Collectives | None) -> int:
        """The least value of all ranks of the group, which call this at the same time."""
        if collectives is not None:
            value = int(collectives.all_gather(torch.tensor([value], device=device)).min())
        return value if self._pipeline is None else self._pipeline.least(value)

    def links(self) -> StageLinks | None:
        """The connections to the other stages, once the ranks have met; None: there is one stage."""
        if self._pipeline is None:
            return None
        assert self._channel is not None
        return StageLinks(self._pipeline, self._mail, self._channel.tell_tokens if self.is_leader else None)

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
            message = f"group {self._config.group_id!r} is lost: {why}; rank {self.place.rank} ends"
            print(message, file=sys.stderr, flush=True)
        os._exit(0 if self._is_leaving else LOST_STATUS)


def _ignore(tokens: bytes) -> None:
    """The other ranks of the last stage sample themselves."""


def _unexpected(entry: bytes) -> None:
    raise AssertionError("only ranks beyond 0 are sent entries")
