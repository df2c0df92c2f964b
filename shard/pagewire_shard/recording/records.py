"""The recorder's file: a magic line, then records. Each is a header of its kind and length, and a payload.

A file begins with START, and then with a state from which what follows can be run: CACHED says how many blocks the
prefix index has (0 at a process's start), SEQUENCE what is known of each sequence. The process may be killed at any
time, so that the last record may be cut; it is then left out.
"""

import struct
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path

from pagewire.v1 import shard_pb2

MAGIC = b"pagewire flight recorder 1\n"
HEADER = struct.Struct("<BI")
"""Kind, and bytes of the payload."""
NUMBERS = struct.Struct("<QQ")


class Kind(IntEnum):
    """What a record says."""

    START = 1
    """The shard: a JSON object, see Recorder."""
    EPOCH = 2
    """An epoch begins: NUMBERS of its max_inflight, and of the blocks in the prefix index."""
    SEQUENCE = 3
    """A sequence that is there when the file begins: NUMBERS of its computed tokens and of 1 if it has stopped, then an
    Admit with all of its tokens."""
    GRAMMAR = 4
    """A Prepare, before the first plan that names it."""
    PLAN = 5
    """A StepPlan, as the router has sent it."""
    RESULT = 6
    """A StepResult without log-probabilities, scores and timings."""
    BROKEN = 7
    """A plan was refused or a step broke: the error, as UTF-8. The epoch ends."""


class NoRecording(Exception):
    """The file is none of the recorder's."""


def packed(kind: Kind, payload: bytes) -> bytes:
    """One record."""
    return HEADER.pack(kind, len(payload)) + payload


def read_records(path: Path) -> Iterator[tuple[Kind, bytes]]:
    """The records of a file. Raises NoRecording, and OSError."""
    data = path.read_bytes()
    if not data.startswith(MAGIC):
        raise NoRecording(f"{path} is no flight recording of this version")
    place = len(MAGIC)
    while place + HEADER.size <= len(data):
        kind, length = HEADER.unpack_from(data, place)
        place += HEADER.size
        if place + length > len(data):
            return
        try:
            yield Kind(kind), data[place : place + length]
        except ValueError:
            raise NoRecording(f"{path} has a record of the unknown kind {kind} at byte {place}") from None
        place += length


def outcome(result: shard_pb2.StepResult) -> bytes:
    """The payload of RESULT."""
    return shard_pb2.StepResult(
        step=result.step,
        num_known_tokens=result.num_known_tokens,
        num_sampled_tokens=result.num_sampled_tokens,
        sampled_token_ids=result.sampled_token_ids,
        stop_reasons=result.stop_reasons,
        first_run_indices=result.first_run_indices,
        num_cached_tokens=result.num_cached_tokens,
        state_digest=result.state_digest,
    ).SerializeToString()
