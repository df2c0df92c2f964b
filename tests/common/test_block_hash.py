"""Blocks are named by their tokens and by all before them: the shard's index and the router's guess at it agree."""

import hashlib

import pytest
from pagewire_common.block_hash import PrefixHashes, block_digests, max_cached_blocks, root_digest, wire_hash

PROMPT = list(range(12))


def hashes(token_ids: list[int], cache_salt: str = "") -> list[int]:
    return PrefixHashes(token_ids, 4, cache_salt).first(100)


def test_a_digest_is_that_of_the_parent_and_the_tokens_as_little_endian_integers() -> None:
    parent = root_digest("")
    tokens = (1).to_bytes(4, "little") + (2**32 - 1).to_bytes(4, "little")
    assert block_digests(parent, [1, 2**32 - 1], 2) == [hashlib.sha256(parent + tokens).digest()]


@pytest.mark.parametrize(("num_blocks", "num_more"), [(0, 2), (1, 0), (64, 1), (65, 0), (200, 2)])
def test_each_digest_builds_on_the_one_before_and_tokens_that_fill_no_block_have_none(num_blocks, num_more) -> None:
    token_ids = [i * 7919 % 50_000 for i in range(3 * num_blocks + num_more)]
    digest, expected = root_digest(""), []
    for start in range(0, 3 * num_blocks, 3):
        (digest,) = block_digests(digest, token_ids[start : start + 3], 3)
        expected.append(digest)
    assert block_digests(root_digest(""), token_ids, 3) == expected


def test_a_block_is_another_one_behind_another_prefix() -> None:
    same, other = (hashes([first, *PROMPT[1:]]) for first in (0, 9))
    assert len(set(same + other)) == 6, "not even the last blocks are equal"


def test_sequences_share_blocks_only_within_one_salt_and_one_adapter() -> None:
    roots = {root_digest(salt, adapter) for salt in ("", "a", "b") for adapter in ("", "a", "b")}
    assert len(roots) == 9
    assert hashes(PROMPT, "a")[0] != hashes(PROMPT)[0]


def test_the_hashes_of_a_prompt_are_those_of_its_full_blocks_computed_as_far_as_asked() -> None:
    expected = [wire_hash(digest) for digest in block_digests(root_digest("salt"), PROMPT, 4)]
    prefix = PrefixHashes(PROMPT, 4, "salt")
    assert (prefix.first(2), prefix.num_known) == (expected[:2], 2)
    assert (prefix.first(1), prefix.num_known) == (expected[:2], 2)
    assert prefix.first(9) == expected
    assert hashes([*PROMPT, 12], "salt") == expected
    assert hashes(PROMPT[:3]) == []


def test_tokens_that_are_appended_later_have_no_hashes() -> None:
    token_ids = PROMPT.copy()
    prefix = PrefixHashes(token_ids, 4)
    token_ids += PROMPT
    assert prefix.first(9) == hashes(PROMPT)


@pytest.mark.parametrize(("num_tokens", "num_blocks"), [(1, 0), (4, 0), (5, 1), (8, 1), (9, 2)])
def test_the_last_token_is_computed_whatever_is_cached(num_tokens: int, num_blocks: int) -> None:
    assert max_cached_blocks(num_tokens, 4) == num_blocks


def test_the_wire_has_the_first_eight_bytes() -> None:
    assert wire_hash(bytes(range(32))) == int.from_bytes(bytes(range(8)), "little")
