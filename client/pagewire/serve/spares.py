"""Spare processes, which have imported what a shard needs and become one when a shard is lost.

There is one for each rank of a group, since all ranks of a group are started again together. They are started when the
shards have run for a while, so that they take no time from the start, nor from a shard that has just come back.
"""

import asyncio
import contextlib
import json
from collections.abc import Callable, Mapping, Sequence

from pagewire.serve.child import Child, tell

DELAY_S = 3.0
"""How long the shards have served before the spares are started."""
MAX_FAILURES = 3
"""Spares that may end by themselves before no more are started."""
NUM_INTERPRETER_WORDS = 3
"""Words of a shard's command before its arguments: the interpreter, -m and the module."""


class Spares:
    """Keeps spares until it is closed."""

    def __init__(self, command: Sequence[str], size: int, delay_s: float = DELAY_S) -> None:
        """command: starts a spare. size: how many to keep."""
        self._command = command
        self._size = size
        self._delay_s = delay_s
        self._children: list[Child] = []
        self._num_failures = 0

    async def keep(self, shards: Callable[[], Sequence[Child]]) -> None:
        """Starts spares that are missing whenever all shards have served for the delay. Ends if they keep failing."""
        steady: Sequence[Child] = ()
        while self._num_failures < MAX_FAILURES:
            await asyncio.sleep(self._delay_s)
            self._drop_ended()
            serving = [child for child in shards() if child.address.done() and not child.has_ended]
            if len(serving) == len(shards()) and serving == steady:
                with contextlib.suppress(OSError):  # out of processes or memory, which may pass
                    while len(self._children) < self._size:
                        self._children.append(await Child.start(self._command, {}))
            steady = serving

    async def take(self, command: Sequence[str], environment: Mapping[str, str]) -> Child | None:
        """Makes a spare the shard of this command. None: there is none, or it still imports, which may take longer than
        a start: kernels that are not cached are compiled."""
        self._drop_ended()
        work = {"arguments": command[NUM_INTERPRETER_WORDS:], "environment": dict(environment)}
        for child in [child for child in self._children if child.is_spare]:
            self._children.remove(child)
            try:
                await child.write_line(json.dumps(work))
            except OSError:  # it has just ended
                continue
            return child
        return None

    async def close(self) -> None:
        """Ends the spares."""
        children, self._children = self._children, []
        for child in children:
            child.kill()
        await asyncio.gather(*(child.wait() for child in children))

    def _drop_ended(self) -> None:
        ended = [child for child in self._children if child.has_ended]
        self._children = [child for child in self._children if not child.has_ended]
        self._num_failures += len(ended)
        if ended and self._num_failures >= MAX_FAILURES:
            tell("pagewire serve: spare shards keep ending; none is started any more")
