"""The chained hash of a block's content. Shards key their prefix index by it, and routers keep a copy of that index."""

import hashlib
from array import array
from functools import lru_cache

Digest = bytes
"""SHA-256 of a block's tokens and of all before them."""
_VERSION = b"pagewire.v1/block\0"
_TABLE_STRIDE = 0x9E37_79B9_7F4A_7C15


@lru_cache(maxsize=1024)
def root_digest(cache_salt: str, adapter: str = "", kind: str = "") -> Digest:
    """The parent of a sequence's first block: sequences share blocks only within one salt, one adapter and one kind.

    kind: As sequence_kind() has it.
    """
    parts = [adapter, cache_salt, *([kind] if kind else [])]
    return hashlib.sha256(_VERSION + b"\0".join(part.encode() for part in parts)).digest()


def sequence_kind(max_len: int, longest_short: int) -> str:
    """What tells the blocks of a sequence from those of others with the same tokens.

    Args:
        max_len: The most tokens that it may have. The last one is sampled, but never computed.
        longest_short: As ShardInfo has it.
    """
    return "long" if longest_short and max_len - 1 > longest_short else ""


def block_digests(parent: Digest, token_ids: list[int], block_size: int) -> list[Digest]:
    """The digests of the full blocks of token_ids, each the parent of the next.

    A digest is SHA-256 of the parent's digest and the block's token ids as little-endian 32-bit integers.
    """
    sha256, digest, num_bytes = hashlib.sha256, parent, 4 * block_size
    data = array("I", token_ids).tobytes()
    digests = []
    for start in range(0, len(data) - num_bytes + 1, num_bytes):
        digest = sha256(digest + data[start : start + num_bytes]).digest()
        digests.append(digest)
    return digests


def wire_hash(digest: Digest) -> int:
    """The hash of a block in results and snapshots: the first 8 bytes of its digest, little-endian."""
    return int.from_bytes(digest[:8], "little")


def table_hash(value: int, table: int) -> int:
    """The wire hash of a block in block table `table`, where that of table 0 is `value`."""
    return (value + table * _TABLE_STRIDE) & 0xFFFF_FFFF_FFFF_FFFF


def table_digest(digest: Digest, table: int) -> Digest:
    """What names a block in block table `table`: another name for each table, as their blocks hold other layers."""
    if not table:
        return digest
    return table_hash(wire_hash(digest), table).to_bytes(8, "little") + digest[8:]


def max_cached_blocks(num_tokens: int, block_size: int) -> int:
    """The most blocks that a cached prefix provides: the last token is always computed, since its logits are needed."""
    return (num_tokens - 1) // block_size


class PrefixHashes:
    """The wire hashes of a prompt's full blocks, each computed once, when it is first asked for."""

    __slots__ = ("_digest", "_hashes", "_token_ids", "block_size", "kind", "num_tokens")

    def __init__(
        self, token_ids: list[int], block_size: int, cache_salt: str = "", adapter: str = "", kind: str = ""
    ) -> None:
        """Tokens that are appended to the list later do not count."""
        self.num_tokens = len(token_ids)
        self.block_size, self.kind = block_size, kind
        self._token_ids = token_ids
        self._digest = root_digest(cache_salt, adapter, kind)
        self._hashes: list[int] = []

    @property
    def num_known(self) -> int:
        """Hashes that have been computed."""
        return len(self._hashes)

    def first(self, num_blocks: int) -> list[int]:
        """The hashes of the first num_blocks blocks, or of all there are; further ones may follow in the list."""
        hashes = self._hashes
        if num_blocks > len(hashes):
            block_size = self.block_size
            end = min(num_blocks * block_size, self.num_tokens)
            digests = block_digests(self._digest, self._token_ids[len(hashes) * block_size : end], block_size)
            if digests:
                hashes += map(wire_hash, digests)
                self._digest = digests[-1]
        return hashes
