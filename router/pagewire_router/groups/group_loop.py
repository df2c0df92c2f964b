"""Drives one shard group: keeps its plan stream open, sends plans, takes in results, hands tokens to the sinks.

Two tasks on the event loop share a scheduler. The sender is the only writer: it fills the window of plans in flight and
renews the lease. The receiver takes in results and wakes the sender. When anything breaks, or a shard makes no
progress, the stream is opened again and a new epoch begins: the shard has forgotten the sequences (not its cached
blocks), so the scheduler admits them again with the tokens they have. That is the one recovery path.

While the group is down its requests wait for it, unless other groups serve: for at most `shard_wait_s`, and not at all
once another router drives the shards.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, KeysView

import grpc
from pagewire.v1 import shard_pb2

from pagewire_router.errors import DeadlineExceeded, QueueFull, RequestFailed, RouterError, StepFailed, Unavailable
from pagewire_router.groups.delivery import deliver
from pagewire_router.groups.digests import Digests
from pagewire_router.groups.failures import elsewhere, failure_error, refusal_error
from pagewire_router.groups.repeating import Repeating
from pagewire_router.groups.retry_delay import retry_delay_s
from pagewire_router.groups.shard_client import (
    CALL_ERRORS,
    LeaseHeld,
    PlanStreamOpened,
    RawCall,
    ShardClient,
    describe,
    encode_plan,
    geometry,
    say_goodbye,
    write_all,
)
from pagewire_router.groups.shard_deaths import ShardDeaths
from pagewire_router.groups.shard_losses import ShardLosses
from pagewire_router.groups.silence_watch import CHECK_S, SilenceWatch
from pagewire_router.groups.stall_watch import TICK_S, StallWatch
from pagewire_router.groups.timeline_observer import TimelineObserver, note_failover, note_queued
from pagewire_router.request import Request
from pagewire_router.scheduling.block_ledger import GroupLimits
from pagewire_router.scheduling.forecast import Estimate
from pagewire_router.scheduling.prefix_index import PrefixIndex
from pagewire_router.scheduling.scheduler import Scheduler
from pagewire_router.scheduling.sequence import ProtocolError, SequenceGroup
from pagewire_router.scheduling.suspects import blame, count_losses

logger = logging.getLogger(__name__)

MIN_BACKOFF_S, MAX_BACKOFF_S = 0.05, 0.4
CONNECT_TIMEOUT_S = 5.0
AVOID_S = 5.0
"""Time after a failure for which other groups are preferred: what fails often does so again soon."""
DRAINED_WAIT_S = 15.0
"""Longest time that requests wait for shards that were told to stop: they may be restarted."""


class GroupLoop:
    """One shard group. `ranks` are its shards, the one that reports tokens first."""

    def __init__(
        self,
        ranks: list[ShardClient],
        info: shard_pb2.ShardInfo,
        *,
        router_id: str,
        max_inflight: int,
        step_timeout_s: float = math.inf,
        shard_wait_s: float = math.inf,
        patience_s: Callable[[], float] = float,
        has_elsewhere: Callable[[], bool] = bool,
        losses: ShardLosses | None = None,
        on_change: Callable[["GroupLoop"], None],
        on_step: Callable[[shard_pb2.StepResult, float], None],
    ) -> None:
        """
        Args:
            step_timeout_s, shard_wait_s: see RouterConfig.
            patience_s: says how long the lease must have been free before this router takes it.
            has_elsewhere: says whether requests could run on another group.
            losses: writes what clients are told about lost shards.
            on_change: called when the group comes up, drains, goes down or is no longer waited for.
            on_step: called with each result and the round trip of its plan in seconds.
        """
        self.info = info
        self.scheduler = Scheduler(GroupLimits.of(info), TimelineObserver(), len(ranks))
        self.is_serving = False
        """Whether the lease is held and plans are sent."""
        self.is_draining = False
        """Whether a shard is about to stop, so that the group gets no new sequences."""
        self.is_expected_back = False
        """Whether requests wait while the group is down: it served not too long ago, and no other router drives it."""
        self.why_away = "no shard group serves"
        """Reason given to requests that are refused because the group is down."""
        self.num_failovers = 0
        """Number of epochs that ended without Goodbye."""
        self.digests = Digests(len(ranks))
        self.epoch = 0
        """Counter of the last lease that was granted."""
        self.ranks = ranks
        self._router_id = router_id
        self._max_inflight = max_inflight
        self._shard_wait_s = shard_wait_s
        self._patience_s = patience_s
        self._has_elsewhere = has_elsewhere
        self._on_change = on_change
        self._on_step = on_step
        self._groups: dict[Request, SequenceGroup] = {}
        self._wakeup = asyncio.Event()
        self._renew_due = False
        self._sent_s: deque[float] = deque()
        self._last_result_s = 0.0
        self.progress = StallWatch(len(ranks), step_timeout_s)
        """Tells whether it gets on."""
        self._silence = SilenceWatch(len(ranks))
        self._failed_s = -math.inf
        """time.monotonic() when an epoch last ended without Goodbye."""
        self._away_since_s = 0.0
        """time.monotonic() when the group last went down."""
        self._stopping = False
        self._why_goodbye = ""
        self._is_down_logged = False
        self._deaths = ShardDeaths()
        self._losses = losses or ShardLosses()

    @property
    def load(self) -> int:
        """Number of sequences that run and requests that wait."""
        return self.scheduler.num_running_sequences + self.num_waiting

    @property
    def num_waiting(self) -> int:
        """Number of requests that wait to be admitted, suspects and those whose grammar is not ready included."""
        return self.scheduler.num_waiting

    def is_dependable(self, now: float) -> bool:
        """Whether it gets on, and has not failed for a while."""
        return self.progress.stuck(now) is None and now - self._failed_s >= AVOID_S

    @property
    def block_size(self) -> int:
        """Tokens in a block."""
        return self.info.block_size

    @property
    def longest_short(self) -> int:
        """As ShardInfo has it."""
        return self.info.longest_short

    @property
    def prefixes(self) -> PrefixIndex:
        """What the group's prefix cache holds."""
        return self.scheduler.prefixes

    @property
    def requests(self) -> KeysView[Request]:
        """The requests that run or wait here."""
        return self._groups.keys()

    # Requests.

    def submit(self, request: Request) -> None:
        """Queues a request. Raises RequestTooLong."""
        self._groups[request] = self.scheduler.add(request)
        note_queued(request, self.info.group_id)
        self._wakeup.set()

    def estimate(self, request: Request, now: float) -> Estimate | None:
        """When a request would run that is submitted now; None: that is not known."""
        return self.scheduler.forecast.estimate(request, now) if self.is_serving else None

    def abort(self, request: Request) -> None:
        """Ends a request; its sink hears nothing more."""
        group = self._groups.pop(request, None)
        if group is not None:
            self.scheduler.end(group)
            self._wakeup.set()

    def adopt(self, group: SequenceGroup) -> None:
        """Takes a request that another shard group has handed over."""
        self._groups[group.request] = group
        self.scheduler.adopt(group)
        note_queued(group.request, self.info.group_id)
        self._wakeup.set()

    def give_up_all(self) -> list[SequenceGroup]:
        """Hands over all requests, to be adopted elsewhere. Results that still come are dropped."""
        note_failover(self.scheduler.running)
        self._fail_refused()
        self._groups.clear()
        self._sent_s.clear()
        return self.scheduler.hand_over()

    def take_place_of(self, other: "GroupLoop") -> None:
        """Replaces a loop that drove the same group: requests go on waiting as long as they would have for that one."""
        self.is_expected_back, self.why_away = other.is_expected_back, other.why_away
        self._away_since_s = other._away_since_s

    def fail_all(self, error: RouterError) -> None:
        """Ends all requests with an error."""
        for group in list(self._groups.values()):
            self._fail(group, error)

    def fail_resumed_elsewhere(self, why: str) -> None:
        """Ends the requests whose clients resume them at other routers."""
        for group in [group for group in self._groups.values() if group.request.resumes]:
            token = ""
            if self._deaths.is_lost(group):
                token = self._losses.write(count_losses(group), group.request, self._deaths.incarnation)
            self._fail(group, elsewhere(why, token))

    def _fail(self, group: SequenceGroup, error: RouterError) -> None:
        """Ends one request, unless that of another part has ended it."""
        if self._groups.pop(group.request, None) is not None:
            self.scheduler.end(group)
            group.request.sink.on_failed(error)

    def end_expired(self, now: float) -> None:
        """Ends requests that have run out of time. `now` is on the clock of Request.deadline_s."""
        for group in self.scheduler.take_expired(now):
            message = "the request's deadline has passed, or the longest time that this server lets one run"
            self._fail(group, DeadlineExceeded(message))
        self._fail_given_up(now)
        self._fail_refused()

    def _fail_refused(self) -> None:
        """Ends the requests whose grammar was refused."""
        refusals, self.scheduler.grammars.refusals = self.scheduler.grammars.refusals, []
        for refusal in refusals:
            self._fail(refusal.group, refusal_error(refusal))

    def _fail_given_up(self, now: float) -> None:
        given_up, self.scheduler.given_up = self.scheduler.given_up, []
        for group in given_up:
            retry_after_s = retry_delay_s(self.scheduler.forecast.wait_for_all_s(now))
            message = "the request has waited until it could not finish before its deadline any more"
            self._fail(group, QueueFull(message, retry_after_s=retry_after_s))

    # The connection.

    async def run(self) -> None:
        """Opens the plan stream and serves, again and again, until stop()."""
        backoff_s = MIN_BACKOFF_S
        while not self._stopping:
            try:
                streams = await self._open()
                backoff_s = MIN_BACKOFF_S
                await self._serve(streams)
            except LeaseHeld as error:
                self._log_down(error)
                # Our own lease may outlive a broken stream for a while: that is no reason to give up.
                if error.holder != self._router_id:
                    self._expect_no_more("another router drives the shards")
            except (*CALL_ERRORS, RouterError, ProtocolError, TimeoutError) as error:
                self._log_down(error)
            except Exception:  # a bug of ours must not end the group for good
                logger.exception("shard group %s is down", self.info.group_id)
                self._is_down_logged = True
            self._set_serving(False)
            self._end_wait()
            self.end_expired(time.monotonic())
            if not self._stopping:
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)

    def _end_wait(self) -> None:
        """Lets requests wait no longer if the shards have been away for too long."""
        wait_s = min(self._shard_wait_s, DRAINED_WAIT_S) if self.is_draining else self._shard_wait_s
        if self.is_expected_back and time.monotonic() - self._away_since_s >= wait_s:
            self._expect_no_more(f"the shards have been away for {wait_s:g} s")

    def _expect_no_more(self, why: str) -> None:
        self.is_expected_back, self.why_away = False, why
        self._on_change(self)

    def _log_down(self, error: Exception) -> None:
        """Logs the first failure after the group served at WARNING; further attempts and requested ends at DEBUG."""
        is_news = not (self._is_down_logged or self._stopping or self.is_draining)
        self._is_down_logged = True
        level = logging.WARNING if is_news else logging.DEBUG
        logger.log(level, "shard group %s is down: %s", self.info.group_id, describe(error))

    def hand_back(self) -> None:
        """Lets another router have the shards, once this group's requests have moved to others."""
        logger.info("shard group %s is handed back", self.info.group_id)
        self._stop_admitting("another router waits for the shard")

    def stop(self) -> None:
        """Says Goodbye to the shards and makes run() return."""
        self._stopping, self._why_goodbye = True, "the router stops"
        self._wakeup.set()

    async def _open(self) -> list[PlanStreamOpened]:
        streams: list[PlanStreamOpened] = []
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                for rank in self.ranks:
                    epoch, patience_s = (streams[0].welcome.epoch, 0.0) if streams else (None, self._patience_s())
                    streams.append(await rank.open_plan_stream(self._router_id, self._max_inflight, epoch, patience_s))
            if any(geometry(stream.welcome.info) != geometry(self.info) for stream in streams):
                raise Unavailable("its shards have been started with another model or other limits")
        except BaseException:
            for stream in streams:
                stream.call.cancel()
            raise
        return streams

    async def _serve(self, streams: list[PlanStreamOpened]) -> None:
        welcome = streams[0].welcome
        self._start_epoch(welcome)
        calls = [stream.call for stream in streams]
        stalled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        tasks = [stalled]
        tasks += [asyncio.ensure_future(self._receive(call, rank)) for rank, call in enumerate(calls)]
        tasks.append(asyncio.ensure_future(self._send(calls, welcome, stalled)))
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in (task for task in tasks if task in done):
                if task.cancelled():  # by grpc.aio: the call was cancelled, nobody cancels the tasks here
                    raise Unavailable("the plan stream was cancelled")
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for call in calls:
                call.cancel()
            if not self._stopping and not self.is_draining:
                self.num_failovers += 1
                self._failed_s = time.monotonic()
                self._deaths.on_lost(self.scheduler.groups_in_flight())
            note_failover(self.scheduler.running)

    def _start_epoch(self, welcome: shard_pb2.Welcome) -> None:
        self._deaths.on_epoch(welcome.epoch.incarnation)
        self._fail_condemned()
        self.scheduler.reset(welcome.free_blocks[0], welcome.max_inflight)
        self._sent_s.clear()
        self.digests.clear()
        if self.progress.start(welcome.epoch.incarnation, time.monotonic()):
            logger.warning(
                "shard group %s was slow, it does not hang: it may take %g s now; raise --step-timeout",
                *(self.info.group_id, self.progress.patience.allowed_s),
            )
        self._silence.start(welcome.epoch.incarnation, time.monotonic())
        self.is_draining = False
        self.is_expected_back = True
        self.epoch = welcome.epoch.counter
        self._set_serving(True)
        level = logging.WARNING if self._is_down_logged else logging.INFO
        logger.log(level, "shard group %s serves, epoch %d", self.info.group_id, welcome.epoch.counter)
        self._is_down_logged = False

    def _fail_condemned(self) -> None:
        """Ends the requests that shard processes have died over alone."""
        # It may have moved here from the group that it ran on.
        for group in [group for group in self._groups.values() if group.is_condemned]:
            self._fail(group, StepFailed("shards stop when they run this request, also when they run nothing else"))

    def _set_serving(self, is_serving: bool) -> None:
        if self.is_serving != is_serving:
            self.is_serving = is_serving
            self._away_since_s = time.monotonic()
            self._on_change(self)

    # Down: plans.

    async def _send(self, calls: list[RawCall], welcome: shard_pb2.Welcome, stalled: "asyncio.Future[None]") -> None:
        """stalled: fails when a shard makes no progress, even while this waits to write."""
        loop = asyncio.get_running_loop()
        renew = shard_pb2.RouterMessage(renew_lease=shard_pb2.RenewLease(epoch=welcome.epoch)).SerializeToString()
        renewal = Repeating(loop, welcome.lease_term_ms / 3000, self._renew)
        tick = Repeating(loop, TICK_S, lambda: self._tick(welcome.epoch.incarnation, stalled))
        listen = Repeating(loop, CHECK_S, lambda: self._listen(welcome.epoch.incarnation, stalled))
        try:
            while not (self._stopping or (self.is_draining and not self.scheduler.running)):
                if self._renew_due:
                    self._renew_due = False
                    await write_all(calls, renew)
                for message in self.scheduler.take_messages():
                    await write_all(calls, message.SerializeToString())
                while self.scheduler.num_inflight < welcome.max_inflight:
                    plan = self._next_plan(time.monotonic())
                    if plan is None:
                        break
                    plan.epoch.CopyFrom(welcome.epoch)
                    self._sent_s.append(time.monotonic())
                    await write_all(calls[:1], encode_plan(plan))  # rank 0 passes it on
                self._wakeup.clear()
                if not (self._stopping or self._renew_due):
                    await self._wakeup.wait()
            await say_goodbye(calls, self._why_goodbye)
        finally:
            renewal.cancel()
            tick.cancel()
            listen.cancel()

    def _next_plan(self, now: float) -> shard_pb2.StepPlan | None:
        self.end_expired(now)
        plan = self.scheduler.schedule(now)
        self._fail_given_up(now)
        return plan

    def _renew(self) -> None:
        self._renew_due = True
        self._wakeup.set()

    def _tick(self, incarnation: int, stalled: "asyncio.Future[None]") -> None:
        oldest_plan_s = self._sent_s[0] if self._sent_s else None
        has_work = bool(self.scheduler.running) or self.num_waiting > self.scheduler.grammars.num_waiting
        stall = self.progress.check(time.monotonic(), oldest_plan_s, has_work=has_work)
        if stall is not None and not stalled.done():
            self.progress.patience.give_up(incarnation)
            stalled.set_exception(Unavailable(str(stall)))
        if self.scheduler.has_work():
            self._wakeup.set()

    def _listen(self, incarnation: int, stalled: "asyncio.Future[None]") -> None:
        silence = self._silence.check(time.monotonic())
        if silence is not None and not stalled.done() and self._has_elsewhere():
            self._silence.patience.give_up(incarnation)
            stalled.set_exception(Unavailable(str(silence)))

    # Up: results.

    async def _receive(self, call: RawCall, rank: int) -> None:
        while True:
            data = await call.read()
            if not isinstance(data, bytes):
                raise Unavailable(f"the plan stream of rank {rank} ended: {await call.details()}")
            now_s = self._silence.heard_s[rank] = time.monotonic()
            message = shard_pb2.ShardMessage.FromString(data)
            kind = message.WhichOneof("message")
            if kind == "beat":
                self._silence.has_beats = True
                continue
            self.progress.heard_s[rank] = now_s
            if kind == "result":
                self._take_result(message.result, rank, now_s)
            elif kind == "prepared":
                self.scheduler.on_prepared(message.prepared)
                self._fail_refused()
                self._wakeup.set()
            elif kind == "cache_snapshot" and rank == 0:
                self.prefixes.update(message.cache_snapshot.hashes, ())
            elif kind == "draining":
                self._drain()

    def _take_result(self, result: shard_pb2.StepResult, rank: int, now_s: float) -> None:
        if result.HasField("error"):
            self._blame(result)
            raise Unavailable(f"step {result.step} failed: {result.error.message}")
        if len(self.ranks) > 1:
            self.digests.check(result.step, result.state_digest)
        if rank != 0 or not self.scheduler.num_inflight:
            return  # Of a plan sent before everything was handed over.
        sent_s = self._sent_s.popleft()
        took_s, self._last_result_s = now_s - max(sent_s, self._last_result_s), now_s
        self.progress.result_s = now_s
        for progress in self.scheduler.update(result):
            group = progress.sequence.group
            try:
                if progress.failure:
                    self._fail(group, failure_error(group.request, progress.failure, progress.row_failure))
                elif deliver(progress, self.scheduler):
                    self._groups.pop(group.request, None)
            except Exception:  # a bug of ours in one request's output must not end the others'
                logger.exception("request %s fails", group.request.request_id)
                self._fail(group, RequestFailed("the server cannot write this request's output"))
        self.scheduler.forecast.on_step(now_s, took_s, self.scheduler.last_completed)
        self._on_step(result, now_s - sent_s)
        self._wakeup.set()

    def _blame(self, result: shard_pb2.StepResult) -> None:
        """Makes suspects of the requests in a failed step, or ends the request that ran alone in it."""
        if result.error.code == grpc.StatusCode.ABORTED.value[0]:
            return
        # What breaks while a step runs may show only in a later one; a refusal names its own plan.
        step = None if result.error.code == grpc.StatusCode.INTERNAL.value[0] else result.step
        culprit = blame(self.scheduler.groups_in_flight(step) or self.scheduler.running)
        if culprit is not None:
            message = f"a step with this request failed, and again with nothing else in it: {result.error.message}"
            self._fail(culprit, StepFailed(message))

    def _drain(self) -> None:
        logger.info("shard group %s drains", self.info.group_id)
        self._stop_admitting("the shard drains")

    def _stop_admitting(self, why: str) -> None:
        """Lets what runs go on, until it has moved to other groups or has ended."""
        self._why_goodbye = why
        self.is_draining = True
        self.scheduler.is_admitting = False
        self._on_change(self)
        self._wakeup.set()
