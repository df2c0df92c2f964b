"""Runs requests on shard groups: the groups there are, the bounded queue, placement, moves between groups."""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Coroutine, Mapping

import grpc
from pagewire.v1 import shard_pb2
from pagewire_common.health_state import HealthState
from pagewire_common.tls import channel_credentials

from pagewire_router.config import RouterConfig
from pagewire_router.errors import QueueFull, RequestTooLong, RouterError, Unavailable
from pagewire_router.groups.failures import elsewhere
from pagewire_router.groups.group_loop import GroupLoop
from pagewire_router.groups.group_metrics import GroupMetrics
from pagewire_router.groups.placement import place, place_in_time
from pagewire_router.groups.request_parts import split
from pagewire_router.groups.retry_delay import retry_delay_s
from pagewire_router.groups.shard_client import ShardClient, describe, geometry
from pagewire_router.groups.shard_directory import REFRESH_S, ShardDirectory, ShardMember
from pagewire_router.groups.shard_losses import ShardLosses
from pagewire_router.groups.shard_resolver import Resolver, ShardAddress
from pagewire_router.groups.sharing import Sharing
from pagewire_router.groups.step_stats import StepStats
from pagewire_router.request import Request

logger = logging.getLogger(__name__)

NO_SHARD_RETRY_S = 1.0
START_PATIENCE_S = 30.0
STOP_TIMEOUT_S = 2.0


class Dispatcher:
    """Implements RequestRunner (see request_runner.py) over real shards."""

    def __init__(self, config: RouterConfig, *, resolver: Resolver | None = None, refresh_s: float = REFRESH_S) -> None:
        """
        Args:
            resolver: looks up the names of shards.
            refresh_s: time between two look-ups.
        """
        self._credentials = (
            channel_credentials(config.shard_tls_ca, config.shard_tls_cert, config.shard_tls_key)
            if config.shard_tls_ca is not None
            else None
        )
        self.model = shard_pb2.ShardInfo()
        self.files: Mapping[str, bytes] = {}
        self.stats = StepStats()
        self._config = config
        self._router_id = f"router-{secrets.token_hex(4)}"
        self._groups: list[GroupLoop] = []
        self._sharing = Sharing(self._router_id)
        self._losses = ShardLosses()
        self.collector = GroupMetrics(self._groups, self.stats)
        self.histograms = (self.stats.round_trip_s,)
        self._directory = ShardDirectory(
            config.shards, self._connect, self._reconcile, resolver=resolver, refresh_s=refresh_s
        )
        self._looking: asyncio.Task[None] | None = None
        self._running: dict[GroupLoop, asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._is_model_known = False
        self._has_served = False
        self._is_draining = False
        self._is_stopping = False
        self._failure: asyncio.Future[None] | None = None

    @property
    def groups(self) -> list[GroupLoop]:
        """All shard groups, whether they serve or not."""
        return self._groups

    @property
    def is_ready(self) -> bool:
        """Whether a new request would run."""
        return self.state.is_ready

    @property
    def state(self) -> HealthState:
        """See RequestRunner."""
        if self._is_draining:
            return HealthState.DRAINING
        able, now = self._able(), time.monotonic()
        if not able and self._others_serve():
            return HealthState.STANDBY
        if not able:
            return HealthState.FAILED if self._has_served else HealthState.LOADING
        if all(group.progress.stuck(now) for group in able):
            return HealthState.STALLED
        return HealthState.BUSY if any(group.load for group in able) else HealthState.IDLE

    @property
    def num_waiting(self) -> int:
        """Number of requests that wait to be admitted."""
        return sum(group.num_waiting for group in self._groups)

    @property
    def num_running(self) -> int:
        """Number of requests that are admitted."""
        return sum(len(group.scheduler.running) for group in self._groups)

    def submit(self, request: Request) -> None:
        """See RequestRunner."""
        if self._is_draining:
            raise Unavailable("the router drains", retry_after_s=1.0)
        self._check_room(request)
        if request.shard_loss_token:
            request.num_shard_losses = self._losses.read(request.shard_loss_token, request)
        if request.resumes and not self._able() and self._others_serve():
            raise elsewhere("no shard group serves here")
        usable, now = self._usable(), time.monotonic()
        try:
            for part in split(request, [group.scheduler.limits for group in usable], self.abort):
                place_in_time(part, usable, now).submit(part)
        except RouterError:
            self.abort(request)
            raise

    def abort(self, request: Request) -> None:
        """See RequestRunner."""
        for part in (request, *request.other_parts):
            for group in self._groups:
                group.abort(part)

    async def start(self) -> None:
        """See RequestRunner."""
        if self._credentials is not None:
            self._credentials.open()
        self._failure = asyncio.get_running_loop().create_future()
        self._looking = asyncio.create_task(self._directory.run(), name="shard directory")
        self._looking.add_done_callback(self._on_ended)
        while not self._is_model_known:
            self._changed.clear()
            if not await self._learn_model():
                await self._changed.wait()
                self._raise_failure()
        self._reconcile()

    async def wait_ready(self) -> None:
        """See RequestRunner. Waits a while for shards that were given by address, since they may be starting too."""
        while not self.is_ready:
            self._changed.clear()
            await self._changed.wait()
            self._raise_failure()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_PATIENCE_S):
                while self._has_stragglers():
                    self._changed.clear()
                    await self._changed.wait()

    async def wait_failed(self) -> None:
        """See RequestRunner."""
        assert self._failure is not None
        await asyncio.shield(self._failure)

    async def drain(self, grace_s: float) -> None:
        """See RequestRunner."""
        self._is_draining = True
        self._hand_over_requests()
        loop = asyncio.get_running_loop()
        end_s = loop.time() + grace_s
        while (self.num_waiting or self.num_running) and loop.time() < end_s:
            await asyncio.sleep(0.02)

    def _hand_over_requests(self) -> None:
        """Ends the requests whose clients resume them, if another router can go on with them at once: it drives groups,
        or gets these, since no other request is left here."""
        num_driven = self._sharing.num_driven_by_others(self._groups)
        all_resume = all(request.resumes for group in self._groups for request in group.requests)
        if num_driven or (num_driven == 0 and all_resume):
            for group in self._groups:
                group.fail_resumed_elsewhere("the router stops")

    def _others_serve(self) -> bool:
        """Whether other routers drive groups, as far as their shards have said."""
        return bool(self._sharing.num_driven_by_others(self._groups))

    async def stop(self) -> None:
        """See RequestRunner."""
        self._is_draining = self._is_stopping = True
        for group in list(self._groups):
            group.fail_all(Unavailable("the router stops", retry_after_s=NO_SHARD_RETRY_S))
            self._retire(group)
        await asyncio.gather(*self._ending)
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        await self._directory.close()

    def _connect(self, address: ShardAddress) -> ShardClient:
        return ShardClient(address.target, name=address.name, credentials=self._credentials)

    async def _learn_model(self) -> bool:
        """Makes the first model that a shard serves this router's model. Returns whether there is one."""
        for member in self._directory.members:
            info = member.info
            if info is None:
                continue
            try:
                self.files = await member.client.get_model_files()
            except (grpc.RpcError, Unavailable) as error:
                logger.warning("no model files from shard %s: %s", member.client.address, describe(error))
                continue
            self.model, self._is_model_known = info, True
            return True
        return False

    def _has_stragglers(self) -> bool:
        """Whether a shard that was given by address may still start to serve this model."""
        serving = {rank for group in self._groups if group.is_serving for rank in group.ranks}
        return any(
            member.address.name is None
            and member.client not in serving
            and (member.info is None or member.info.model_digest == self.model.model_digest)
            for member in self._directory.members
        )

    # Groups.

    def _reconcile(self) -> None:
        """Creates and retires groups by the known shards. Called after every change, and every few seconds."""
        self._changed.set()
        if not self._is_model_known or self._is_stopping:
            return
        self._losses.meet(member.info.incarnation for member in self._directory.members if member.info is not None)
        complete = self._directory.complete_groups(self.model.model_digest).values()
        self._sharing.update(members[0].info for members in complete if members[0].info is not None)
        for members in complete:
            self._settle(members)
        self._hand_back()
        self._move_requests()
        self._end_expired()
        self._drop_gone()
        self._check_model()

    def _settle(self, members: list[ShardMember]) -> None:
        """Drives a complete group. A group that already serves is not touched."""
        info = members[0].info
        assert info is not None
        current = next((group for group in self._groups if group.info.group_id == info.group_id), None)
        ranks = [member.client for member in members]
        if current is not None and (
            current.is_serving or (current.ranks == ranks and geometry(current.info) == geometry(info))
        ):
            return
        group = GroupLoop(
            ranks,
            info,
            router_id=self._router_id,
            max_inflight=_max_inflight(self._config, info),
            step_timeout_s=self._config.step_timeout_s,
            shard_wait_s=self._config.shard_wait_s,
            patience_s=lambda: self._sharing.patience_s(self._groups),
            has_elsewhere=lambda: len(self._able()) > 1 or self._others_serve(),
            losses=self._losses,
            on_change=self._on_change,
            on_step=self.stats.add,
        )
        self._groups.append(group)
        self._running[group] = asyncio.create_task(group.run(), name=f"shard group {info.group_id}")
        self._running[group].add_done_callback(self._on_ended)
        if current is not None:
            group.take_place_of(current)
            self._move(current, [group])
            self._retire(current)

    def _hand_back(self) -> None:
        """Hands a group to a router that drives fewer, if there is one."""
        surplus = None if self._is_draining else self._sharing.surplus(self._groups, asyncio.get_running_loop().time())
        if surplus is not None:
            surplus.hand_back()

    def _drop_gone(self) -> None:
        """Retires groups whose shards are gone. Requests keep waiting while a listed shard may still take over."""
        members, now_s = self._directory.members, asyncio.get_running_loop().time()
        gone = {member.client: member for member in members if member.is_gone(now_s)}
        has_hope = any(member.is_listed for member in members)
        for group in list(self._groups):
            if group.is_serving or gone.keys().isdisjoint(group.ranks) or (group.requests and has_hope):
                continue
            logger.warning("shard group %s is gone", group.info.group_id)
            group.fail_all(Unavailable("the shards are gone", retry_after_s=NO_SHARD_RETRY_S))
            self._retire(group)
        driven = {rank for group in self._groups for rank in group.ranks}
        for client in gone.keys() - driven:
            self._in_background(self._directory.forget(gone[client]))

    def _retire(self, group: GroupLoop) -> None:
        """Stops driving a group, and releases its shards."""
        self._groups.remove(group)
        self.collector.on_retired(group)
        group.stop()
        self._in_background(_end(self._running.pop(group)))

    def _in_background(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def _check_model(self) -> None:
        """A router serves one model until it ends. When its shards serve another model, it has to be restarted."""
        listed = [member.info for member in self._directory.members if member.is_listed and member.info is not None]
        if not listed or any(group.is_serving for group in self._groups):
            return
        if all(info.model_digest != self.model.model_digest for info in listed):
            self._fail("the shards serve another model now")

    def _on_ended(self, task: asyncio.Task[None]) -> None:
        """Ends the router if a task has ended that should run as long as it does. Tasks of retired groups may end."""
        if self._is_stopping or (task is not self._looking and task not in self._running.values()):
            return
        error = None if task.cancelled() else task.exception()
        logger.error("the task %r has ended", task.get_name(), exc_info=error)
        self._fail(f"the task {task.get_name()!r} has ended")

    def _fail(self, why: str) -> None:
        """Notes that only a restarted router could serve."""
        assert self._failure is not None
        if not self._failure.done():
            self._failure.set_exception(Unavailable(f"{why}; start the router again"))
        self._changed.set()

    def _raise_failure(self) -> None:
        if self._failure is not None and self._failure.done():
            self._failure.result()

    # Requests.

    def _usable(self) -> list[GroupLoop]:
        """The groups that a request may go to: those that serve, otherwise those that broke and will be back."""
        usable = _dependable(self._able()) or [g for g in self._groups if g.is_expected_back and not g.is_draining]
        if not usable:
            raise Unavailable("no shard group serves", retry_after_s=NO_SHARD_RETRY_S)
        return usable

    def _able(self) -> list[GroupLoop]:
        return [group for group in self._groups if group.is_serving and not group.is_draining]

    def _check_room(self, request: Request) -> None:
        num_waiting = self.num_waiting
        num_tokens = sum(group.scheduler.num_waiting_tokens for group in self._groups)
        if num_waiting >= self._config.max_queued_requests:
            what = f"{num_waiting} requests wait, at most {self._config.max_queued_requests} may"
        elif num_waiting and num_tokens + request.num_known_tokens > self._config.max_queued_tokens:
            what = f"{num_tokens} tokens wait, at most {self._config.max_queued_tokens} may"
        else:
            return
        raise QueueFull(what, retry_after_s=retry_delay_s(self._half_queue_s()))

    def _half_queue_s(self) -> float | None:
        """Time until half of the waiting requests are admitted, in the group where that is soonest; None: unknown."""
        now = time.monotonic()
        waits_s = [group.scheduler.forecast.wait_for_all_s(now) for group in self._able()]
        return min((wait_s / 2 for wait_s in waits_s if wait_s is not None), default=None)

    def _on_change(self, group: GroupLoop) -> None:
        """Called when a group has come up, drains or has gone down."""
        self._has_served |= group.is_serving
        self._reconcile()

    def _move_requests(self) -> None:
        """Moves the waiting requests of groups that are down or drain to groups that serve, if there are any."""
        able = self._able()
        for group in self._groups:
            if not group.requests or group in able:
                continue
            if able:
                self._move(group, _dependable(able))
                continue
            if self._others_serve():
                group.fail_resumed_elsewhere("the shards are away")
            if not group.is_expected_back:
                group.fail_all(Unavailable(group.why_away, retry_after_s=NO_SHARD_RETRY_S))

    def _end_expired(self) -> None:
        """Ends expired requests of groups that do not serve. A group that serves ends its own."""
        for group in self._groups:
            if not group.is_serving:
                group.end_expired(time.monotonic())

    def _move(self, group: GroupLoop, others: list[GroupLoop]) -> None:
        for moved in group.give_up_all():
            other = place(moved.request, others)
            try:
                other.scheduler.limits.check_fits(moved.request)
            except RequestTooLong as error:
                moved.request.sink.on_failed(error)
            else:
                other.adopt(moved)


def _max_inflight(config: RouterConfig, info: shard_pb2.ShardInfo) -> int:
    """Plans outstanding on a group: of a pipeline one more for each further stage, unless one at a time is wanted."""
    return config.max_inflight if config.max_inflight == 1 else config.max_inflight + max(1, info.pp_size) - 1


def _dependable(groups: list[GroupLoop]) -> list[GroupLoop]:
    """Those of the groups that get on and have not just failed; if there is none, all."""
    now = time.monotonic()
    return [group for group in groups if group.is_dependable(now)] or groups


async def _end(task: asyncio.Task[None]) -> None:
    """Waits for a group to say goodbye."""
    await asyncio.wait([task], timeout=STOP_TIMEOUT_S)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
