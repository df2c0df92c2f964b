"""The chained hash of a block's content. Shards key their prefix index by it, and routers keep a copy of that index."""

import hashlib
from array import array
from collections.abc import Iterator, Sequence

Digest = bytes
"""SHA-256 of a block's tokens and of all before them."""
_VERSION = b"pagewire.v1/block\0"


def root_digest(cache_salt: str, adapter: str = "") -> Digest:
    """The parent of a sequence's first block: sequences share blocks only within one salt and one adapter."""
    return hashlib.sha256(_VERSION + adapter.encode() + b"\0" + cache_salt.encode()).digest()


def block_digest(parent: Digest, token_ids: Sequence[int]) -> Digest:
    """SHA-256 of the parent's digest and the block's token ids as little-endian 32-bit integers."""
    return hashlib.sha256(parent + array("I", token_ids).tobytes()).digest()


def wire_hash(digest: Digest) -> int:
    """The hash of a block in results and snapshots: the first 8 bytes of its digest, little-endian."""
    return int.from_bytes(digest[:8], "little")


def prefix_hashes(token_ids: list[int], block_size: int, cache_salt: str = "", adapter: str = "") -> Iterator[int]:
    """The wire hashes of a prompt's full blocks, first to last. One of its tokens is always computed, never cached."""
    digest = root_digest(cache_salt, adapter)
    for start in range(0, (len(token_ids) - 1) // block_size * block_size, block_size):
        digest = block_digest(digest, token_ids[start : start + block_size])
        yield wire_hash(digest)
