"""Which shard group a request goes to. Deadlines are tested in test_forecast.py."""

import pytest
from pagewire_common.block_hash import PrefixHashes
from pagewire_router.groups.placement import LOAD_WINDOW_SEQUENCES, place
from pagewire_router.scheduling.prefix_index import PrefixIndex
from scheduling_world import make_request

BLOCK_SIZE = 4
PROMPT = [1, 2, 3, 4] * 4


class Group:
    block_size = BLOCK_SIZE

    def __init__(self, load, num_cached=0, cache_salt="", kind="", longest_short=0):
        self.load, self.prefixes, self.longest_short = load, PrefixIndex(), longest_short
        self.prefixes.update(PrefixHashes(PROMPT, BLOCK_SIZE, cache_salt, kind=kind).first(num_cached), ())


def test_without_a_cached_prefix_the_least_busy_group_is_chosen():
    busy, free = Group(5), Group(3)
    assert place(make_request(PROMPT), [busy, free]) is free


def test_the_group_that_has_more_of_the_prompt_cached_is_chosen():
    groups = [Group(0, 1), Group(LOAD_WINDOW_SEQUENCES, 3), Group(2, 2)]
    assert place(make_request(PROMPT), groups) is groups[1]


def test_a_cached_prefix_does_not_outweigh_a_long_queue():
    free, warm = Group(0), Group(LOAD_WINDOW_SEQUENCES + 1, 4)
    assert place(make_request(PROMPT), [free, warm]) is free


@pytest.mark.parametrize(("cache_salt", "chosen"), [("", 1), ("other", 0)])
def test_a_prefix_that_was_cached_with_another_salt_does_not_count(cache_salt, chosen):
    groups = [Group(0), Group(1, 4)]
    assert place(make_request(PROMPT, cache_salt=cache_salt), groups) is groups[chosen]


@pytest.mark.parametrize(("max_tokens", "chosen"), [(5, 0), (6, 1)])
def test_what_long_sequences_have_cached_counts_for_long_ones(max_tokens, chosen):
    """The last token is not computed."""
    groups = [Group(0, 3, longest_short=20), Group(0, 4, kind="long", longest_short=20)]
    assert place(make_request(PROMPT, max_tokens=max_tokens), groups) is groups[chosen]
