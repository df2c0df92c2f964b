"""Slots that many clients take turns in, so that nobody who asks often keeps others from theirs.

Free slots go to whoever asks. Once all are taken, the next one that is released goes to the next owner in turn, within
an owner to its next connection, and within a connection to what has waited longest.
"""

import asyncio

from pagewire_router.caller import Caller

_Waiters = dict[asyncio.Future[None], None]
"""In the order of arrival; a dict, since those that give up leave from the middle."""


class FairSlots:
    """A semaphore with turns. Everything runs on the event loop's thread; every operation takes constant time."""

    def __init__(self, num_slots: int) -> None:
        self._num_free = num_slots
        self._owners: dict[str, dict[str, _Waiters]] = {}
        self.num_waiting = 0
        """Those that wait for a slot."""

    def take(self) -> bool:
        """Takes a slot if one is free."""
        if self._num_free == 0:
            return False
        self._num_free -= 1
        return True

    async def wait(self, caller: Caller) -> None:
        """Takes a slot when it is the caller's turn. Raises what displace() or fail_waiting() was told."""
        if self.take():
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        connections = self._owners.setdefault(caller.owner, {})
        connections.setdefault(caller.connection, {})[waiter] = None
        self.num_waiting += 1
        try:
            await waiter
        except asyncio.CancelledError:
            has_slot = waiter.done() and not waiter.cancelled() and waiter.exception() is None
            if has_slot:
                self.release()
            else:
                self._forget(caller, waiter)
            raise

    def release(self) -> None:
        """Gives a slot back."""
        while self._owners:
            waiter = self._pop()
            if not waiter.done():
                waiter.set_result(None)
                return
        self._num_free += 1

    def fail_waiting(self, error: Exception) -> None:
        """Everybody who waits for a slot gets the error in its place."""
        while self._owners:
            waiter = self._pop()
            if not waiter.done():
                waiter.set_exception(error)

    def displace(self, caller: Caller, error: Exception) -> bool:
        """Makes room for a caller: who waits most often loses the newest place. False: nobody has more than the caller.

        Takes time in proportion to the connections that wait.
        """
        owners = {owner: sum(map(len, connections.values())) for owner, connections in self._owners.items()}
        owner = max(owners, key=owners.__getitem__, default=caller.owner)
        if owners.get(owner, 0) <= owners.get(caller.owner, 0) + 1:
            owner = caller.owner
        connections = self._owners.get(owner, {})
        connection = max(connections, key=lambda name: len(connections[name]), default="")
        waiters = connections.get(connection, {})
        num_own = 0 if owner != caller.owner else len(connections.get(caller.connection, {}))
        if len(waiters) <= num_own + (owner == caller.owner):
            return False
        waiter = next(reversed(waiters))
        self._forget(Caller(owner, connection), waiter)
        if not waiter.done():
            waiter.set_exception(error)
        return True

    def _pop(self) -> "asyncio.Future[None]":
        """The next in turn. Its owner and its connection go to the end of their lines, or leave them."""
        owner, connections = next(iter(self._owners.items()))
        connection, waiters = next(iter(connections.items()))
        waiter = next(iter(waiters))
        del waiters[waiter], connections[connection], self._owners[owner]
        self.num_waiting -= 1
        if waiters:
            connections[connection] = waiters
        if connections:
            self._owners[owner] = connections
        return waiter

    def _forget(self, caller: Caller, waiter: "asyncio.Future[None]") -> None:
        connections = self._owners.get(caller.owner, {})
        waiters = connections.get(caller.connection, {})
        if waiter not in waiters:
            return
        del waiters[waiter]
        self.num_waiting -= 1
        if not waiters:
            del connections[caller.connection]
        if not connections:
            del self._owners[caller.owner]
