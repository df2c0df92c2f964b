"""Requests of every kind, drawn by a seed, and what may be said of their answers."""

import random
from dataclasses import dataclass
from enum import Enum

from pagewire.v1 import inference_pb2
from random_models import random_prompts

SCHEMA = (
    '{"type": "object", "properties": {"a": {"type": "integer", "maximum": 99}, "b": {"enum": ["x", "yy", null]}},'
    ' "required": ["a", "b"], "additionalProperties": false}'
)
GRAMMARS = (
    {"regex": "(yes|no)( indeed){0,3}"},
    {"choice": {"options": ["red", "green", "blue"]}},
    {"json": SCHEMA, "whitespace_pattern": " ?"},
    {"json_object": True, "whitespace_pattern": " ?"},
    {"grammar": 'start: ("ab" | "cd")+ "!"'},
)
LAST_TOKENS = tuple(range(3, 400, 12))


class End(Enum):
    """How a client lets its request end."""

    WAITS = "waits for the answer"
    LEAVES = "goes away after the first tokens"
    HURRIES = "sets a deadline that may be too early"


@dataclass(frozen=True)
class SoakRequest:
    """A request and its client."""

    message: inference_pb2.GenerateRequest
    end: End
    kind: str


def draw(num_requests: int, seed: int) -> list[SoakRequest]:
    """The requests, the same for the same seed. Prompts share prefixes; each samples greedily or by its own seed."""
    rng = random.Random(seed)
    stems = random_prompts((40, 90, 150), seed=seed)
    kinds = (_plain, _plain, _parallel, _beams, _grammar, _grammar, _stops, _logprobs, _prompt_logprobs, _taken)
    requests = []
    for number in range(num_requests):
        stem = rng.choice(stems)
        prompt = [*stem[: rng.randrange(1, len(stem))], *(rng.randrange(1, 200) for _ in range(rng.randrange(1, 9)))]
        message = inference_pb2.GenerateRequest(
            request_id=f"soak-{number}",
            token_ids=inference_pb2.TokenIds(ids=prompt),
            priority=rng.choice([0, 0, 0, 0, -1, 1]),
            cache_salt=rng.choice(["", "", "", "other"]),
        )
        kind = kinds[number % len(kinds)]
        kind(message, rng)
        end = rng.choice([End.WAITS] * 10 + [End.LEAVES, End.HURRIES])
        requests.append(SoakRequest(message, end, kind.__name__.strip("_")))
    return requests


def _sampling(message: inference_pb2.GenerateRequest, rng: random.Random, *, greedy: bool | None = None):
    params = message.sampling_params
    params.max_tokens = rng.randrange(1, 80)
    params.ignore_eos = rng.random() < 0.5
    is_greedy = rng.random() < 0.4 if greedy is None else greedy
    params.temperature = 0.0 if is_greedy else rng.choice([0.5, 1.0, 1.5])
    params.seed = rng.randrange(1 << 40)
    return params


def _plain(message: inference_pb2.GenerateRequest, rng: random.Random) -> None:
    params = _sampling(message, rng)
    if rng.random() < 0.5:
        params.top_k, params.top_p, params.min_p = rng.choice([0, 5, 50]), rng.choice([1.0, 0.8]), rng.choice([0, 0.05])
    if rng.random() < 0.5:
        params.repetition_penalty, params.presence_penalty = 1.2, 0.5
    if rng.random() < 0.3:
        params.logit_bias.update({token_id: rng.uniform(-3, 3) for token_id in range(0, 300, 7)})


def _parallel(message: inference_pb2.GenerateRequest, rng: random.Random) -> None:
    params = _sampling(message, rng, greedy=False)
    params.n = rng.randrange(2, 6)


def _beams(message: inference_pb2.GenerateRequest, rng: random.Random) -> None:
    params = message.beam_search_params
    params.beam_width = rng.randrange(2, 7)
    params.max_tokens = rng.randrange(2, 25)
    params.length_penalty = rng.choice([0.5, 1.0, 1.5])
    params.stop_token_ids.extend(LAST_TOKENS)
    params.early_stopping = rng.randrange(4)  # type: ignore[assignment]
    if rng.random() < 0.3:
        params.structured_outputs.CopyFrom(inference_pb2.StructuredOutputs(**rng.choice(GRAMMARS)))


def _grammar(message: inference_pb2.GenerateRequest, rng: random.Random) -> None:
    params = _sampling(message, rng)
    params.max_tokens = rng.randrange(8, 60)
    params.structured_outputs.CopyFrom(inference_pb2.StructuredOutputs(**rng.choice(GRAMMARS)))
    if rng.random() < 0.2:
        params.structured_outputs.reasoning_end = "e"
    if rng.random() < 0.2:
        params.prompt_logprobs = 1
    if params.temperature and rng.random() < 0.3:
        params.n = 3
    if rng.random() < 0.3:
        params.logprobs = 3


def _stops(message: inference_pb2.GenerateRequest, rng: random.Random) -> None:
    params = _sampling(message, rng)
    params.max_tokens = 60
    params.stop.extend(rng.sample(["e", "th", "a ", "xyz", "o"], 2))
    params.stop_token_ids.extend(rng.sample(LAST_TOKENS, 3))
    params.min_tokens = rng.choice([0, 0, 7])
    params.include_stop_str_in_output = rng.random() < 0.5


def _logprobs(message: inference_pb2.GenerateRequest, rng: random.Random) -> None:
    params = _sampling(message, rng)
    params.logprobs = rng.choice([0, 1, 20])
    if params.temperature and rng.random() < 0.5:
        params.n = 2


def _prompt_logprobs(message: inference_pb2.GenerateRequest, rng: random.Random) -> None:
    params = _sampling(message, rng)
    params.prompt_logprobs = rng.choice([0, 2, 20])
    params.max_tokens = rng.randrange(1, 20)
    if params.temperature and rng.random() < 0.3:
        params.n = 3


def _taken(message: inference_pb2.GenerateRequest, rng: random.Random) -> None:
    params = _sampling(message, rng)
    if rng.random() < 0.5:
        params.allowed_token_ids.extend(rng.sample(range(1, 400), rng.choice([3, 40])))
    else:
        params.bad_words.extend(rng.sample(["the", "a", " e", "qu", "Paris"], 3))
