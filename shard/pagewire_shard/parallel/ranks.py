"""A rank of a tensor-parallel group, and what it gets of something that all ranks share out."""

from dataclasses import dataclass


class CannotShare(Exception):
    """Something of a model cannot be shared out among so many ranks; the message says what, with its size."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """One rank among `size` that hold a model together."""

    rank: int = 0
    size: int = 1
    by_expert: bool = False
    """Each rank has some of a mixture's experts, in place of some of the inner units of every expert."""

    @property
    def is_alone(self) -> bool:
        return self.size == 1

    def share(self, count: int, what: str) -> int:
        """What each rank gets of `count`. Raises CannotShare, naming `what`, unless all can get the same."""
        if count % self.size:
            raise CannotShare(f"{count} {what}")
        return count // self.size

    def share_or_copy(self, count: int, what: str) -> int:
        """The same; where there are more ranks than `count`, as many ranks each hold a copy of one."""
        return 1 if count < self.size and self.size % count == 0 else self.share(count, what)

    def padded_share(self, count: int, what: str) -> int:
        """The same, rounded up: the last rank has some that are only padding."""
        share = -(-count // self.size)
        if share * (self.size - 1) >= count:
            raise CannotShare(f"{count} {what}")
        return share


ALONE = Ranks()
