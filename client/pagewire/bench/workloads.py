"""The prompts and output lengths of a benchmark."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pagewire.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request's prompt and the most tokens it may generate."""

    content: str | list[int]
    """Text, or token ids."""
    max_tokens: int


@dataclass(frozen=True, slots=True)
class LengthRange:
    """A length that varies uniformly around a mean."""

    mean: int
    ratio: float = 0.0
    """Lengths lie within mean * (1 - ratio) and mean * (1 + ratio)."""

    def draw(self, rng: random.Random) -> int:
        """Returns a random length of at least 1."""
        return max(1, rng.randint(round(self.mean * (1 - self.ratio)), round(self.mean * (1 + self.ratio))))


@dataclass(frozen=True, slots=True)
class Prefixes:
    """The prefixes that prompts share."""

    count: int
    length: int
    """Tokens in each prefix."""


def random_tokens(
    num_prompts: int, input_len: LengthRange, output_len: LengthRange, token_ids: range, rng: random.Random
) -> list[Prompt]:
    """Returns prompts of uniformly random tokens, which share no prefix.

    Args:
        token_ids: the ids to draw from.
    """
    return [Prompt(rng.choices(token_ids, k=input_len.draw(rng)), output_len.draw(rng)) for _ in range(num_prompts)]


def shared_prefixes(
    num_prompts: int,
    prefixes: Prefixes,
    suffix_len: LengthRange,
    output_len: LengthRange,
    token_ids: range,
    rng: random.Random,
) -> list[Prompt]:
    """Returns prompts that begin with one of a few long prefixes, in random order, and end in random tokens."""
    beginnings = [rng.choices(token_ids, k=prefixes.length) for _ in range(prefixes.count)]
    prompts = [
        Prompt(beginnings[i % prefixes.count] + rng.choices(token_ids, k=suffix_len.draw(rng)), output_len.draw(rng))
        for i in range(num_prompts)
    ]
    rng.shuffle(prompts)
    return prompts


def agent_sessions(
    num_sessions: int,
    num_turns: int,
    prefixes: Prefixes,
    turn_len: LengthRange,
    output_len: LengthRange,
    token_ids: range,
    rng: random.Random,
) -> list[list[Prompt]]:
    """Returns the turns of agents' conversations, each what it adds to its conversation.

    The first turn is one of a few long prefixes, as instructions and tools are, and a task; the others are what tools
    answer. The model's own outputs stand between them.
    """
    beginnings = [rng.choices(token_ids, k=prefixes.length) for _ in range(prefixes.count)]
    sessions = []
    for number in range(num_sessions):
        added = [rng.choices(token_ids, k=turn_len.draw(rng)) for _ in range(num_turns)]
        added[0] = beginnings[number % prefixes.count] + added[0]
        sessions.append([Prompt(turn, output_len.draw(rng)) for turn in added])
    return sessions


def from_file(path: Path, num_prompts: int, output_len: LengthRange, rng: random.Random) -> list[Prompt]:
    """Returns the prompts of a file, repeated from its start if it has fewer than asked for.

    A name that ends in .jsonl holds one object for each line: {"prompt": text} or {"prompt_token_ids": [ids]}, and
    optionally "max_tokens". Any other file is plain text with one prompt for each line. Empty lines are skipped.

    Raises:
        InvalidRequest: the file is unreadable, empty or malformed; the message names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path}: cannot be read: {error}") from error
    parse = _parse_jsonl if path.suffix == ".jsonl" else _parse_text
    prompts = list(parse(path, lines, output_len, rng))
    if not prompts:
        raise InvalidRequest(f"{path}: holds no prompts")
    return [prompts[i % len(prompts)] for i in range(num_prompts)]


def _parse_text(path: Path, lines: list[str], output_len: LengthRange, rng: random.Random) -> Iterator[Prompt]:
    for line in lines:
        if line.strip():
            yield Prompt(line, output_len.draw(rng))


def _parse_jsonl(path: Path, lines: list[str], output_len: LengthRange, rng: random.Random) -> Iterator[Prompt]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise InvalidRequest(f"{path}:{number}: not JSON: {error}") from error
        content = _content(entry)
        if content is None:
            raise InvalidRequest(f'{path}:{number}: expected an object with "prompt" (text) or "prompt_token_ids"')
        max_tokens = entry.get("max_tokens", output_len.draw(rng))
        if not isinstance(max_tokens, int) or max_tokens < 1:
            raise InvalidRequest(f"{path}:{number}: max_tokens must be a positive integer, not {max_tokens!r}")
        yield Prompt(content, max_tokens)


def _content(entry: Any) -> str | list[int] | None:
    """Returns the prompt of one parsed line; None if it has none."""
    if not isinstance(entry, dict):
        return None
    text, token_ids = entry.get("prompt"), entry.get("prompt_token_ids")
    if isinstance(text, str) and text:
        return text
    if isinstance(token_ids, list) and token_ids and all(isinstance(token, int) for token in token_ids):
        return token_ids
    return None
