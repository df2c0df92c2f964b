"""Tells other routers, by way of the client, how often in a row shards were lost over a request.

The count comes back with `Resume`, from a client that may say anything, and a request with a high count runs alone. So
it is sealed: with the incarnation of the shard process that was lost, a random number that routers of one deployment
learn from the shards and clients never do. A router that has not met that process does not know the count, and begins
at 0. The seal holds for one prompt and one seed, and until the process has been gone for KEEP_S.
"""

import hashlib
import hmac
import time
from array import array
from collections.abc import Iterable

from pagewire_router.request import Request

KEEP_S = 600.0
"""Time for which a router takes counts over that were sealed with a process that is gone."""
_MAX_COUNT = 255
_SEAL_BYTES = 16


class ShardLosses:
    """Writes and reads the tokens with the counts of one router."""

    def __init__(self) -> None:
        self._met_s: dict[int, float] = {}
        """By incarnation of a shard process: time.monotonic() when this router last heard of it."""

    def meet(self, incarnations: Iterable[int], now_s: float | None = None) -> None:
        """Notes the shard processes that run now, and forgets those that are long gone.

        now_s: of time.monotonic(); None: now.
        """
        now_s = time.monotonic() if now_s is None else now_s
        self._met_s |= dict.fromkeys(incarnations, now_s)
        gone = [incarnation for incarnation, met_s in self._met_s.items() if now_s - met_s > KEEP_S]
        for incarnation in gone:
            del self._met_s[incarnation]

    def write(self, count: int, request: Request, incarnation: int) -> str:
        """The token that says that so many shards were lost in a row, the last of them with this incarnation."""
        count = min(count, _MAX_COUNT)
        self.meet([incarnation])
        return bytes([count, *_seal(count, _name(request), incarnation)]).hex()

    def read(self, token: str, request: Request) -> int:
        """The count that a router has written for this request; 0 if the token is none of that."""
        try:
            data = bytes.fromhex(token)
        except ValueError:
            return 0
        if len(data) != 1 + _SEAL_BYTES:
            return 0
        name = _name(request)
        seals = (_seal(data[0], name, incarnation) for incarnation in self._met_s)
        return data[0] if any(hmac.compare_digest(data[1:], seal) for seal in seals) else 0


def _name(request: Request) -> bytes:
    """What a request keeps when its client resumes it."""
    prompt = hashlib.blake2b(array("I", request.prompt_token_ids), digest_size=32).digest()
    return prompt + request.params.seed.to_bytes(8, "little", signed=True)


def _seal(count: int, name: bytes, incarnation: int) -> bytes:
    key = incarnation.to_bytes(8, "little")
    data = bytes([count]) + name
    return hashlib.blake2b(data, digest_size=_SEAL_BYTES, key=key, person=b"shard losses").digest()
