"""Blocks are named by their tokens and by all before them: the shard's index and the router's guess at it agree."""

import hashlib

from pagewire_common.block_hash import block_digest, prefix_hashes, root_digest, wire_hash

PROMPT = list(range(12))


def test_a_hash_is_that_of_the_parent_and_the_tokens_as_little_endian_integers() -> None:
    parent = root_digest("")
    tokens = (1).to_bytes(4, "little") + (2**32 - 1).to_bytes(4, "little")
    assert block_digest(parent, [1, 2**32 - 1]) == hashlib.sha256(parent + tokens).digest()


def test_a_block_is_another_one_behind_another_prefix() -> None:
    same, other = (list(prefix_hashes([first, *PROMPT[1:]], 4)) for first in (0, 9))
    assert len(set(same + other)) == 4, "not even the second blocks are equal"


def test_sequences_share_blocks_only_within_one_salt_and_one_adapter() -> None:
    roots = {root_digest(salt, adapter) for salt in ("", "a", "b") for adapter in ("", "a", "b")}
    assert len(roots) == 9
    assert next(prefix_hashes(PROMPT, 4, "a")) != next(prefix_hashes(PROMPT, 4))


def test_the_hashes_of_a_prompt_are_those_of_its_full_blocks_but_for_the_last_token() -> None:
    digest, expected = root_digest("salt"), []
    for start in (0, 4):
        digest = block_digest(digest, PROMPT[start : start + 4])
        expected.append(wire_hash(digest))
    assert list(prefix_hashes(PROMPT, 4, "salt")) == expected, "its 12th token is computed, whatever is cached"
    assert list(prefix_hashes([*PROMPT, 12], 4, "salt"))[:2] == expected
    assert len(list(prefix_hashes([*PROMPT, 12], 4, "salt"))) == 3
    assert list(prefix_hashes(PROMPT[:4], 4)) == []


def test_the_wire_has_the_first_eight_bytes() -> None:
    assert wire_hash(bytes(range(32))) == int.from_bytes(bytes(range(8)), "little")
