"""Keeps the list of shards with their descriptions. Every few seconds it looks names up and asks the shards."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence

from pagewire.v1 import shard_pb2

from pagewire_router.groups.shard_client import CALL_ERRORS, ShardClient, describe
from pagewire_router.groups.shard_resolver import DnsResolver, Resolver, ShardAddress, dns_name

logger = logging.getLogger(__name__)

REFRESH_S = 3.0
"""Time between two look-ups, and between two questions to a shard."""
LOOK_UP_TIMEOUT_S = 5.0
INFO_TIMEOUT_S = 2.0
MIN_RETRY_S, MAX_RETRY_S = 0.02, 0.2
"""Time between two questions to a shard that does not answer yet, most likely because it loads its model."""
SILENCE_IS_NEWS_AFTER_S = 60.0
"""A shard that has not answered for this time is logged."""
GONE_AFTER_S = 10.0
"""A shard that is behind no name any more and has been silent for this time is forgotten."""


class ShardMember:
    """One shard whose address was given or found."""

    def __init__(self, address: ShardAddress, client: ShardClient, now_s: float) -> None:
        self.address = address
        self.client = client
        self.is_listed = True
        """Whether the address was given, or is behind a name now."""
        self.info: shard_pb2.ShardInfo | None = None
        """The shard's last description; None while it does not answer."""
        self.silent_since_s = now_s

    def is_gone(self, now_s: float) -> bool:
        """Whether the shard is not listed and has been silent for a while."""
        return not self.is_listed and self.info is None and now_s - self.silent_since_s >= GONE_AFTER_S


class ShardDirectory:
    """Keeps the list of shards while run() runs."""

    def __init__(
        self,
        targets: Sequence[str],
        connect: Callable[[ShardAddress], ShardClient],
        on_change: Callable[[], None],
        *,
        resolver: Resolver | None = None,
        refresh_s: float = REFRESH_S,
    ) -> None:
        """on_change: called when a shard's description has changed, and after each look-up."""
        self._targets = targets
        self._connect = connect
        self._on_change = on_change
        self._resolver = resolver or DnsResolver()
        self._refresh_s = refresh_s
        self._members: dict[ShardAddress, ShardMember] = {}
        self._asking: dict[ShardMember, asyncio.Task[None]] = {}
        self._found: dict[str, Sequence[ShardAddress]] = {}
        self._failing: set[str] = set()

    @property
    def members(self) -> list[ShardMember]:
        """All known shards, in the order in which they were found."""
        return list(self._members.values())

    def complete_groups(self, model_digest: bytes) -> dict[str, list[ShardMember]]:
        """The groups of a model of which all shards answer, by id; in each, the shard that reports tokens first.

        Of two shards that claim one place, the listed one has it, or the one that was found last.
        """
        groups: dict[str, dict[tuple[int, int], ShardMember]] = {}
        sizes: dict[str, int] = {}
        for member in sorted(self._members.values(), key=lambda member: member.is_listed):
            info = member.info
            if info is not None and info.model_digest == model_digest:
                groups.setdefault(info.group_id, {})[-info.pp_rank, info.tp_rank] = member
                sizes[info.group_id] = info.tp_size * info.pp_size
        return {
            group_id: [places[place] for place in sorted(places)]
            for group_id, places in groups.items()
            if len(places) == sizes[group_id]
        }

    async def run(self) -> None:
        """Looks names up periodically, until cancelled."""
        while True:
            try:
                await self._refresh()
            except Exception:  # A bug of ours must not end the search for shards.
                logger.exception("the shards cannot be looked up")
            await asyncio.sleep(self._refresh_s)

    async def forget(self, member: ShardMember) -> None:
        """Stops asking the shard, and closes the channel to it."""
        task = self._asking.pop(member, None)
        if task is None:
            return
        self._members = {address: known for address, known in self._members.items() if known is not member}
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await member.client.close()

    async def close(self) -> None:
        """Forgets all shards."""
        for member in self.members:
            await self.forget(member)

    async def _refresh(self) -> None:
        found = await asyncio.gather(*(self._look_up(target) for target in self._targets))
        listed = {address for addresses in found for address in addresses}
        now_s = asyncio.get_running_loop().time()
        for address in sorted(listed - self._members.keys(), key=lambda address: address.target):
            member = ShardMember(address, self._connect(address), now_s)
            self._members[address] = member
            self._asking[member] = asyncio.create_task(self._ask(member))
        for address, member in self._members.items():
            member.is_listed = address in listed
        self._on_change()

    async def _look_up(self, target: str) -> Sequence[ShardAddress]:
        """The addresses behind a target now, or at the last look-up that succeeded."""
        name = dns_name(target)
        if name is None:
            return (ShardAddress(target),)
        try:
            async with asyncio.timeout(LOOK_UP_TIMEOUT_S):
                addresses = await self._resolver.resolve(*name)
        except OSError as error:
            level = logging.DEBUG if target in self._failing else logging.WARNING
            logger.log(level, "%s cannot be looked up: %s", target, describe(error))
            self._failing.add(target)
            return self._found.get(target, ())
        self._failing.discard(target)
        self._found[target] = [ShardAddress(address, name[0]) for address in addresses]
        return self._found[target]

    async def _ask(self, member: ShardMember) -> None:
        """Asks a shard periodically for its description."""
        loop = asyncio.get_running_loop()
        retry_s, is_told = MIN_RETRY_S, False
        while True:
            try:
                info = await member.client.get_info(INFO_TIMEOUT_S)
            except CALL_ERRORS as error:
                if member.info is not None:
                    member.info, member.silent_since_s = None, loop.time()
                if not is_told and loop.time() - member.silent_since_s > SILENCE_IS_NEWS_AFTER_S:
                    is_told = True
                    logger.warning("shard %s does not answer: %s", member.client.address, describe(error))
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, MAX_RETRY_S)
                continue
            retry_s, is_told = MIN_RETRY_S, False
            if info != member.info:
                member.info = info
                self._warn_of_rival(member, info)
                try:
                    self._on_change()
                except Exception:  # A bug of ours must not end the questions to a shard.
                    logger.exception("shard %s cannot be taken in", member.client.address)
            await asyncio.sleep(self._refresh_s)

    def _warn_of_rival(self, member: ShardMember, info: shard_pb2.ShardInfo) -> None:
        place = (info.group_id, info.pp_rank, info.tp_rank)
        for other in self._members.values():
            said = other.info
            if (
                said is not None
                and said.incarnation != info.incarnation  # else: one shard under two addresses
                and (said.group_id, said.pp_rank, said.tp_rank) == place
            ):
                logger.warning(
                    "shards %s and %s both say that they are rank %d of group %r: give each group an id of its own",
                    *(other.client.address, member.client.address, info.tp_rank, info.group_id),
                )
