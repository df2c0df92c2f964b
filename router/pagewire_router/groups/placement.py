"""Which shard group a request goes to: where most of its prompt is cached, among those that are not much busier."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from pagewire_router.groups.prefix_mirror import PrefixMirror, prefix_hashes
from pagewire_router.request import Request

LOAD_WINDOW_SEQUENCES = 16
"""A group with so many more sequences than the least busy one is not chosen for its cache: the cost of waiting for a
slot in the batch outgrows that of computing a prefix again."""


class Candidate(Protocol):
    """What placement looks at."""

    mirror: PrefixMirror

    @property
    def load(self) -> int:
        """Sequences that run or wait."""

    @property
    def block_size(self) -> int:
        """Tokens in a block."""


AnyCandidate = TypeVar("AnyCandidate", bound=Candidate)


def place(request: Request, groups: Sequence[AnyCandidate]) -> AnyCandidate:
    """Chooses one of the groups, of which there is at least one."""
    if len(groups) == 1:
        return groups[0]
    least = min(group.load for group in groups)
    near = [group for group in groups if group.load <= least + LOAD_WINDOW_SEQUENCES]
    hashes = list(prefix_hashes(request.prompt_token_ids, near[0].block_size, request.cache_salt))
    return max(near, key=lambda group: (group.mirror.num_cached_blocks(hashes), -group.load))
