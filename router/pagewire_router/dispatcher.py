"""The engine behind the service: shard groups, the bounded queue, placement, and what follows when a group is down."""

import asyncio
import logging
import secrets
from collections.abc import Mapping

import grpc
from pagewire.v1 import shard_pb2

from pagewire_router.config import RouterConfig
from pagewire_router.engine_metrics import EngineMetrics
from pagewire_router.errors import QueueFull, Unavailable
from pagewire_router.group_loop import GroupLoop, describe
from pagewire_router.placement import place
from pagewire_router.request import Request
from pagewire_router.shard_client import ShardClient
from pagewire_router.step_stats import StepStats

logger = logging.getLogger(__name__)

INFO_TIMEOUT_S = 2.0
MIN_RETRY_S, MAX_RETRY_S = 0.1, 5.0


class Dispatcher:
    """Implements Engine (see engine.py) over real shards."""

    def __init__(self, config: RouterConfig) -> None:
        self.model = shard_pb2.ShardInfo()
        self.files: Mapping[str, bytes] = {}
        self.stats = StepStats()
        self._config = config
        self._router_id = f"router-{secrets.token_hex(4)}"
        self._groups: list[GroupLoop] = []
        self.collector = EngineMetrics(self._groups, self.stats)
        self.histograms = (self.stats.round_trip_s,)
        self._clients: list[ShardClient] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._changed = asyncio.Event()
        self._is_draining = False

    @property
    def groups(self) -> list[GroupLoop]:
        """The shard groups, serving or not."""
        return self._groups

    @property
    def is_ready(self) -> bool:
        """A step would run."""
        return not self._is_draining and any(group.is_serving for group in self._groups)

    @property
    def num_waiting(self) -> int:
        """Requests that wait to be admitted."""
        return sum(len(group.scheduler.waiting) for group in self._groups)

    @property
    def num_running(self) -> int:
        """Requests that were admitted."""
        return sum(len(group.scheduler.running) for group in self._groups)

    def submit(self, request: Request) -> None:
        """See Engine."""
        if self._is_draining:
            raise Unavailable("the router drains", retry_after_s=1.0)
        self._check_room(request)
        place(request, self._usable()).submit(request)

    def abort(self, request: Request) -> None:
        """See Engine."""
        for group in self._groups:
            group.abort(request)

    async def start(self) -> None:
        """See Engine. Raises Unavailable if the shards contradict each other."""
        self._clients = [ShardClient(address) for address in self._config.shards]
        infos = await asyncio.gather(*(self._wait_for_info(client) for client in self._clients))
        self.model = infos[0]
        self.files = await self._clients[0].get_model_files()
        for members in _by_group(self._clients, infos):
            ranks = [client for client, _ in members]
            group = GroupLoop(
                ranks,
                members[0][1],
                router_id=self._router_id,
                max_inflight=self._config.max_inflight,
                on_change=self._on_change,
                on_step=self.stats.add,
            )
            self._groups.append(group)
            self._tasks.append(asyncio.create_task(group.run()))
        while not self.is_ready:
            self._changed.clear()
            await self._changed.wait()

    async def drain(self, grace_s: float) -> None:
        """See Engine."""
        self._is_draining = True
        loop = asyncio.get_running_loop()
        end_s = loop.time() + grace_s
        while (self.num_waiting or self.num_running) and loop.time() < end_s:
            await asyncio.sleep(0.02)

    async def stop(self) -> None:
        """See Engine."""
        self._is_draining = True
        for group in self._groups:
            group.fail_all(Unavailable("the router stops", retry_after_s=1.0))
            group.stop()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=2.0)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(client.close() for client in self._clients))

    async def _wait_for_info(self, client: ShardClient) -> shard_pb2.ShardInfo:
        """Shards may take long to load their model; a router waits for them."""
        while True:
            try:
                return await client.get_info(INFO_TIMEOUT_S)
            except grpc.RpcError as error:
                logger.debug("shard %s: %s", client.address, describe(error))
                await asyncio.sleep(0.02)

    def _usable(self) -> list[GroupLoop]:
        """The groups a request may go to: those that serve, else all, for they will be back."""
        serving = [group for group in self._groups if group.is_serving and not group.is_draining]
        if not self._groups:
            raise Unavailable("no shard group is connected", retry_after_s=1.0)
        return serving or self._groups

    def _check_room(self, request: Request) -> None:
        num_waiting = self.num_waiting
        num_tokens = sum(group.scheduler.waiting.num_tokens for group in self._groups)
        if num_waiting >= self._config.max_queued_requests:
            what = f"{num_waiting} requests wait, at most {self._config.max_queued_requests} may"
        elif num_waiting and num_tokens + len(request.prompt_token_ids) > self._config.max_queued_tokens:
            what = f"{num_tokens} prompt tokens wait, at most {self._config.max_queued_tokens} may"
        else:
            return
        retry_after_s = self.stats.seconds_to_admit(num_waiting // 2)
        raise QueueFull(what, retry_after_s=min(max(retry_after_s, MIN_RETRY_S), MAX_RETRY_S))

    def _on_change(self, group: GroupLoop) -> None:
        """A group came up, drains or went down: what it ran moves to the others, if there are any."""
        self._changed.set()
        if group.is_serving and not group.is_draining:
            return
        others = [g for g in self._groups if g is not group and g.is_serving and not g.is_draining]
        if not others:
            return
        for moved in group.give_up_all():
            place(moved.request, others).adopt(moved)


def _by_group(
    clients: list[ShardClient], infos: list[shard_pb2.ShardInfo]
) -> list[list[tuple[ShardClient, shard_pb2.ShardInfo]]]:
    """The shards by group, each in order of rank. Raises Unavailable if a group is incomplete or models differ."""
    groups: dict[str, list[tuple[ShardClient, shard_pb2.ShardInfo]]] = {}
    for client, info in zip(clients, infos, strict=True):
        if info.model_digest != infos[0].model_digest:
            raise Unavailable(f"shard {client.address} serves another model than shard {clients[0].address}")
        groups.setdefault(info.group_id, []).append((client, info))
    for group_id, members in groups.items():
        members.sort(key=lambda member: (-member[1].pp_rank, member[1].tp_rank))
        size = members[0][1].tp_size * members[0][1].pp_size
        if len(members) != size:
            raise Unavailable(f"shard group {group_id} has {len(members)} of {size} shards")
    return list(groups.values())
