"""Requests of every kind at once, on pools too small for them, while both replicas are killed in turn.

What comes is what came from a server that had room and was left alone.
"""

import asyncio
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from cluster import Cluster, Service, free_port, read_metrics, shards_and_router
from pagewire.v1 import inference_pb2, inference_pb2_grpc
from soak_requests import End, SoakRequest, draw

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

NUM_REQUESTS = 300
NUM_AT_ONCE = 70
HURRIED_S = 1.0
MAX_NEAR_TIES = 1
"""Answers that may differ: float32 products depend in their last bits on what else is in a step."""


@dataclass
class Sequence:
    """What came of one sequence."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[inference_pb2.TokenLogprobs] = field(default_factory=list)
    finished: inference_pb2.Finished | None = None


@dataclass
class Answer:
    """What came of one request."""

    sequences: dict[int, Sequence] = field(default_factory=dict)
    prompt_logprobs: list[inference_pb2.TokenLogprobs] = field(default_factory=list)
    error: grpc.aio.AioRpcError | None = None

    def take(self, event: inference_pb2.GenerateResponse) -> None:
        kind = event.WhichOneof("event")
        if kind == "prompt_logprobs":
            assert event.prompt_logprobs.first_position == 1 + len(self.prompt_logprobs)
            assert not self.sequences, "they come before all tokens"
            self.prompt_logprobs += event.prompt_logprobs.logprobs
        elif kind == "delta":
            sequence = self.sequences.setdefault(event.delta.index, Sequence())
            assert sequence.finished is None
            sequence.text += event.delta.text
            sequence.token_ids += event.delta.token_ids
            sequence.logprobs += event.delta.logprobs
        elif kind == "finished":
            sequence = self.sequences.setdefault(event.finished.index, Sequence())
            assert sequence.finished is None
            sequence.finished = event.finished


class Load:
    """Sends requests and takes their answers."""

    def __init__(self, address: str, requests: list[SoakRequest], *, patient: bool) -> None:
        """patient: every client waits for its answer, however long."""
        self._address, self._requests, self._patient = address, requests, patient
        self.answers = {request.message.request_id: Answer() for request in requests}
        self.num_done = 0

    async def run(self) -> None:
        """Returns when the last request has ended."""
        room = asyncio.Semaphore(NUM_AT_ONCE)

        async def send(request: SoakRequest) -> None:
            async with room:
                await self._send(stub, request)
                self.num_done += 1

        async with grpc.aio.insecure_channel(self._address) as channel, asyncio.TaskGroup() as group:
            stub = inference_pb2_grpc.InferenceStub(channel)
            for request in self._requests:
                group.create_task(send(request))

    async def _send(self, stub: inference_pb2_grpc.InferenceStub, request: SoakRequest) -> None:
        answer = self.answers[request.message.request_id]
        timeout_s = HURRIED_S if request.end is End.HURRIES and not self._patient else None
        try:
            async for event in stub.Generate(request.message, timeout=timeout_s):
                answer.take(event)
                if request.end is End.LEAVES and not self._patient and answer.sequences:
                    return
        except grpc.aio.AioRpcError as error:
            answer.error = error

    async def until(self, share: float) -> None:
        """Returns when so many of the requests have ended."""
        while self.num_done < share * len(self._requests):
            await asyncio.sleep(0.02)


@contextmanager
def small_cluster(model: Path) -> Iterator[tuple[Cluster, int]]:
    """Two replicas whose pools hold a few requests each, and the port of the router's metrics."""
    port = free_port()
    flags = ("--block-size", "16", "--kv-cache-memory", "192KiB", "--max-num-seqs", "16", "--max-model-len", "512")
    budget = ("--max-num-batched-tokens", "64")
    with shards_and_router(model, *flags, *budget, num_shards=2, router_flags=["--metrics-port", str(port)]) as cluster:
        yield cluster, port


async def kill_and_start_again(cluster: Cluster, number: int, stack: ExitStack) -> None:
    """Ends a replica at once, and starts it on the same address; it serves some seconds later."""
    shard = cluster.shards[number]
    shard.process.kill()
    await asyncio.to_thread(shard.process.wait, 30)
    directory = Path(shard._logs[0]).parent
    again = Service(f"{shard.name}-again", list(shard.process.args), directory)  # type: ignore[arg-type]
    stack.callback(again.stop)
    cluster.shards[number] = again


def differs(request: SoakRequest, found: Answer, expected: Answer) -> str:
    """How a whole answer differs from the expected one; empty: not at all."""
    if found.sequences.keys() != expected.sequences.keys():
        return f"sequences {sorted(found.sequences)}, expected {sorted(expected.sequences)}"
    if difference := logprobs_differ(found.prompt_logprobs, expected.prompt_logprobs):
        return f"prompt: {difference}"
    for index, right in expected.sequences.items():
        mine = found.sequences[index]
        if (mine.token_ids, mine.text) != (right.token_ids, right.text):
            return f"{index}: {mine.token_ids} {mine.text!r}, expected {right.token_ids} {right.text!r}"
        if difference := logprobs_differ(mine.logprobs, right.logprobs):
            return f"{index}: {difference}"
        assert mine.finished is not None
        assert right.finished is not None
        ends = [
            (end.finish_reason, end.WhichOneof("stop_reason"), end.stop_string, end.stop_token_id)
            for end in (mine.finished, right.finished)
        ]
        if ends[0] != ends[1]:
            return f"{index}: ends with {ends[0]}, expected {ends[1]}"
        for name in ("cumulative_logprob", "beam_score"):
            if not math.isclose(getattr(mine.finished, name), getattr(right.finished, name), abs_tol=2e-3):
                return f"{index}: {name} {getattr(mine.finished, name)}, expected {getattr(right.finished, name)}"
    return ""


def logprobs_differ(found: list[inference_pb2.TokenLogprobs], expected: list[inference_pb2.TokenLogprobs]) -> str:
    """Whether one of them belongs to another token, or is another number."""
    if [entry.token_id for entry in found] != [entry.token_id for entry in expected]:
        return f"{len(found)} log-probabilities, expected {len(expected)}, or of other tokens"
    for mine, right in zip(found, expected, strict=True):
        if not math.isclose(mine.logprob, right.logprob, abs_tol=1e-3) or len(mine.top_logprobs) != len(
            right.top_logprobs
        ):
            return f"log-probability {mine}, expected {right}"
    return ""


async def test_requests_of_every_kind_end_as_if_nothing_had_happened(model: Path) -> None:
    requests = draw(NUM_REQUESTS, seed=11)
    assert len({request.kind for request in requests}) == 8
    with shards_and_router(model, "--block-size", "16", "--kv-cache-memory", "64MiB") as quiet:
        expected = Load(quiet.address, requests, patient=True)
        await expected.run()
        failed = {name: answer.error for name, answer in expected.answers.items() if answer.error is not None}
        assert not failed, failed
    with small_cluster(model) as (cluster, port), ExitStack() as stack:
        load = Load(cluster.address, requests, patient=False)
        async with asyncio.TaskGroup() as group:
            running = group.create_task(load.run())
            for number, share in enumerate((0.15, 0.4)):
                await load.until(share)
                assert not running.done()
                await kill_and_start_again(cluster, number, stack)
        for shard in cluster.shards:
            shard.wait_ready()
        check_answers(requests, load.answers, expected.answers, cluster)
        cluster.check_all_blocks_come_back()
        check_router(read_metrics(port))
        assert "Traceback" not in cluster.log(), cluster.log()


def check_answers(
    requests: list[SoakRequest], found: dict[str, Answer], expected: dict[str, Answer], cluster: Cluster
) -> None:
    """Whoever waited has the whole answer, the others what came until they left or their time was up."""
    different, ends = [], Counter[str]()
    for request in requests:
        name = request.message.request_id
        answer = found[name]
        if answer.error is not None:
            assert request.end is End.HURRIES, f"{request.kind} {name}: {answer.error}\n{cluster.log()}"
            assert answer.error.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)
            ends["late"] += 1
        elif request.end is End.LEAVES:
            ends["left"] += 1
        elif difference := differs(request, answer, expected[name]):
            different.append(f"{request.kind} {name}: {difference}")
        else:
            ends["whole"] += 1
    assert len(different) <= MAX_NEAR_TIES, "\n".join(different)
    assert ends["whole"] > 0.8 * NUM_REQUESTS, ends
    assert ends["left"] > 5, ends


def check_router(metrics: dict[str, float]) -> None:
    """The pools were too small, both replicas were lost, and nothing is left of the requests."""
    total: Counter[str] = Counter()
    for name, value in metrics.items():
        total[name.partition("{")[0]] += value  # type: ignore[assignment]
    assert total["pagewire_preemptions_total"] > 5, total
    assert total["pagewire_failovers_total"] >= 2, total
    assert total["pagewire_digest_mismatches_total"] == 0
    for name in ("pagewire_group_sequences_running", "pagewire_requests_queued", "pagewire_requests_open"):
        assert total[name] == 0, name
