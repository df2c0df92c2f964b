"""Streams of every kind, run again and again while faults happen, and compared with undisturbed ones."""

import asyncio
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pagewire import (
    AsyncClient,
    BeamSearchParams,
    Event,
    PagewireError,
    PromptLogprobs,
    SamplingParams,
    SequenceFinished,
    Started,
    StructuredOutputsParams,
    TokenDelta,
)

LOGPROB_TOLERANCE = 2e-3
"""Log-probabilities are computed in batches of other sizes when a request is recomputed."""
TIMEOUT_S = 240.0
SCHEMA = (
    '{"type": "object", "properties": {"name": {"type": "string", "maxLength": 60}, '
    '"tags": {"type": "array", "items": {"type": "string", "maxLength": 20}, "minItems": 3, "maxItems": 5}}, '
    '"required": ["name", "tags"]}'
)


@dataclass(frozen=True)
class Spec:
    """One request, which has one right answer."""

    kind: str
    prompt: Any
    params: SamplingParams | BeamSearchParams


def specs(num: int, num_tokens: int) -> list[Spec]:
    """Requests of eight kinds in turn, with half to all of so many tokens."""
    return [_spec(i, num_tokens // 2 + (i * 37) % (num_tokens // 2)) for i in range(num)]


def _spec(i: int, num_tokens: int) -> Spec:
    prompt: Any = f"Once upon a time there was number {i},"
    some = {"max_tokens": num_tokens, "ignore_eos": True, "seed": 1000 + i}
    greedy = {**some, "temperature": 0.0}
    match i % 8:
        case 0:
            return Spec("plain", prompt, SamplingParams(**greedy))
        case 1:
            return Spec(
                "sampled", {"messages": [{"role": "user", "content": prompt}]}, SamplingParams(**some, top_p=0.9)
            )
        case 2:
            return Spec("n=2", prompt, SamplingParams(**some, n=2))
        case 3:
            grammar = StructuredOutputsParams(json=SCHEMA)
            params = SamplingParams(max_tokens=num_tokens, seed=i, structured_outputs=grammar)
            return Spec("JSON schema", prompt, params)
        case 4:
            return Spec("beams", prompt, BeamSearchParams(3, max(8, num_tokens // 4), n=2, ignore_eos=True))
        case 5:
            stop = ["zq zq zq", "never never", "\n\n\n\n\n"]
            return Spec("stop strings", prompt, SamplingParams(**some, top_k=50, stop=stop, min_tokens=10))
        case 6:
            return Spec("log-probabilities", prompt, SamplingParams(**greedy, logprobs=3, prompt_logprobs=1))
        case _:
            penalties = {"presence_penalty": 0.5, "frequency_penalty": 0.3, "repetition_penalty": 1.2}
            return Spec("penalties", prompt, SamplingParams(**some, **penalties))


@dataclass
class Answer:
    """What one request has brought, put together as a caller would, and when."""

    num_started: int = 0
    text: dict[int, str] = field(default_factory=dict)
    tokens: dict[int, list[int]] = field(default_factory=dict)
    logprobs: list[float] = field(default_factory=list)
    ends: dict[int, tuple[object, ...]] = field(default_factory=dict)
    error: str = ""
    times_s: list[float] = field(default_factory=list)

    def take(self, event: Event) -> None:
        self.times_s.append(time.monotonic())
        match event:
            case Started():
                self.num_started += 1
            case PromptLogprobs():
                self.logprobs += [entry.logprob for position in event.logprobs for entry in position.values()]
            case TokenDelta():
                self.text[event.index] = self.text.get(event.index, "") + event.text
                self.tokens.setdefault(event.index, []).extend(event.token_ids)
                for position in event.logprobs or []:
                    self.logprobs += [entry.logprob for entry in position.values()]
            case SequenceFinished():
                end = event.finish_reason, event.stop_reason, event.usage.prompt_tokens, event.usage.completion_tokens
                self.ends[event.index] = end if event.index not in self.ends else ("ended twice",)

    def is_as(self, other: "Answer") -> bool:
        """Whether nothing is missing, doubled or different."""
        return (
            (self.num_started, self.text, self.tokens, self.ends)
            == (other.num_started, other.text, other.tokens, other.ends)
            and len(self.logprobs) == len(other.logprobs)
            and all(
                math.isclose(mine, its, abs_tol=LOGPROB_TOLERANCE)
                for mine, its in zip(self.logprobs, other.logprobs, strict=True)
            )
        )

    def longest_pause_s(self, since_s: float) -> float | None:
        """The longest time without an event that ended after since_s; None: the stream had ended before."""
        pauses = [b - a for a, b in zip(self.times_s, self.times_s[1:], strict=False) if b >= since_s]
        return max(pauses, default=None)


async def ask(client: AsyncClient, spec: Spec, answer: Answer) -> None:
    """Runs one request to its end."""
    try:
        if isinstance(spec.params, BeamSearchParams):
            found = await client.beam_search(spec.prompt, spec.params, timeout_s=TIMEOUT_S)
            for index, sequence in enumerate(found.sequences):
                answer.tokens[index], answer.text[index] = list(sequence.tokens), sequence.text or ""
            return
        async for event in client.generate(spec.prompt, spec.params, timeout_s=TIMEOUT_S):
            answer.take(event)
    except PagewireError as error:
        answer.error = f"{type(error).__name__}: {error.message[:200]}"


@dataclass
class Row:
    """What happened to the requests that ran during one fault."""

    fault: str
    num_requests: int
    num_lost: int
    num_differing: int
    pause_p50_s: float
    pause_max_s: float
    num_disturbed: int
    """Streams that ran when the fault began."""
    errors: list[str]
    differing: list[str]

    def line(self) -> str:
        figures = f"{self.num_requests} | {self.num_lost} | {self.num_differing}"
        return f"| {self.fault} | {figures} | {self.pause_p50_s:.2f} | {self.pause_max_s:.2f} |"


class Load:
    """Asks all specs at once, and each again when it has ended, until enough have been asked and no fault is left."""

    def __init__(self, target: str | Sequence[str], asked: list[Spec], expected: list[Answer]) -> None:
        self._client = AsyncClient(target)
        self._specs = asked
        self._expected = expected
        self._answers: list[tuple[int, Answer]] = []
        self._running: dict[int, Answer] = {}
        self.num_left = 0
        self._is_disturbed = True
        self._since_s = math.inf

    async def all_begun(self) -> None:
        """Returns when every stream that can has brought something."""
        async with asyncio.timeout(TIMEOUT_S):
            while not all(
                len(answer.times_s) > 1 or isinstance(self._specs[i].params, BeamSearchParams)
                for i, answer in self._running.items()
            ):
                await asyncio.sleep(0.01)

    def begin_fault(self) -> int:
        """The first fault comes now: pauses count. Returns the number of streams that run."""
        self._since_s = min(self._since_s, time.monotonic())
        return len(self._running)

    def end_faults(self) -> None:
        """No further fault comes."""
        self._is_disturbed = False

    async def run(self, num_requests: int) -> None:
        """Runs until so many requests have ended and the faults are over."""
        self.num_left = num_requests
        async with self._client, asyncio.TaskGroup() as group:
            for index in range(len(self._specs)):
                self._running[index] = Answer()
                group.create_task(self._ask_again_and_again(index))

    async def _ask_again_and_again(self, index: int) -> None:
        while True:
            answer = self._running.setdefault(index, Answer())
            self.num_left -= 1
            await ask(self._client, self._specs[index], answer)
            self._answers.append((index, answer))
            del self._running[index]
            if self.num_left <= 0 and not self._is_disturbed:
                return

    def row(self, fault: str, num_disturbed: int) -> Row:
        lost = [answer.error for _, answer in self._answers if answer.error]
        differing = [
            f"{self._specs[index].kind} {index}"
            for index, answer in self._answers
            if not answer.error and not answer.is_as(self._expected[index])
        ]
        all_pauses = [answer.longest_pause_s(self._since_s) for _, answer in self._answers]
        pauses = [pause_s for pause_s in all_pauses if pause_s is not None] or [math.nan]
        return Row(
            fault,
            len(self._answers),
            len(lost),
            len(differing),
            round(statistics.median(pauses), 3),
            round(max(pauses), 3),
            num_disturbed,
            sorted(set(lost)),
            differing,
        )


async def undisturbed(target: str | Sequence[str], asked: list[Spec]) -> list[Answer]:
    """The right answers."""
    answers = [Answer() for _ in asked]
    async with AsyncClient(target) as client:
        await asyncio.gather(*(ask(client, spec, answer) for spec, answer in zip(asked, answers, strict=True)))
    assert not any(answer.error for answer in answers), [answer.error for answer in answers]
    return answers
