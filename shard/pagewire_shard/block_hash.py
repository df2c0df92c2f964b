"""The chained hash that names a block's content.

The router computes the same chain to guess where a prefix is cached; a test holds the two together.
"""

import hashlib
from array import array
from collections.abc import Sequence

from pagewire_shard.block_pool import Digest

_VERSION = b"pagewire.v1/block\0"


def root_digest(cache_salt: str, adapter: str = "") -> Digest:
    """The parent of a sequence's first block: sequences share blocks only within one salt and one adapter."""
    return hashlib.sha256(_VERSION + adapter.encode() + b"\0" + cache_salt.encode()).digest()


def block_digest(parent: Digest, token_ids: Sequence[int]) -> Digest:
    """SHA-256 of the parent's digest and the block's token ids as little-endian 32-bit integers."""
    return hashlib.sha256(parent + array("I", token_ids).tobytes()).digest()
