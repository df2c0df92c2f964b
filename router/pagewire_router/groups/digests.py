"""Compares the state digests that the ranks of a group report after each step."""

from pagewire_router.scheduling.sequence import ProtocolError


class Digests:
    """The digests of steps that not all ranks have answered. Each rank answers each step once; some lag behind."""

    def __init__(self, num_ranks: int) -> None:
        self.num_mismatches = 0
        """Number of digests that differed from the first one of their step."""
        self._num_ranks = num_ranks
        self._open: dict[int, list[int]] = {}
        """The first digest of each step, and the number of ranks that have yet to answer."""

    def clear(self) -> None:
        """A new epoch begins: steps of the last one are answered no more."""
        self._open.clear()

    def check(self, step: int, digest: int) -> None:
        """Takes one rank's digest. Raises ProtocolError if it is not the one that was first to come."""
        first = self._open.setdefault(step, [digest, self._num_ranks])
        if digest != first[0]:
            self.num_mismatches += 1
            raise ProtocolError(f"the ranks disagree after step {step}")
        first[1] -= 1
        if not first[1]:
            del self._open[step]
