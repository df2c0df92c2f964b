"""A semaphore that is fair between clients: one that asks often does not keep others waiting.

A free slot goes to whoever asks. Once all are taken, a released slot goes to the next owner in turn, within an owner to
its next connection, and within a connection to the waiter that has waited longest.
"""

import asyncio

from pagewire_router.caller import Caller

_Waiters = dict[asyncio.Future[None], None]
"""Waiters in the order of arrival. A dict, since waiters that give up are removed from the middle."""


class FairSlots:
    """A semaphore with turns. Everything runs on the event loop's thread; every operation takes constant time."""

    def __init__(self, num_slots: int) -> None:
        self._num_free = num_slots
        self._owners: dict[str, dict[str, _Waiters]] = {}
        self.num_waiting = 0
        """Number of callers that wait for a slot."""

    def take(self) -> bool:
        """Takes a slot if one is free."""
        if self._num_free == 0:
            return False
        self._num_free -= 1
        return True

    async def wait(self, caller: Caller) -> None:
        """Takes a slot when it is the caller's turn. Raises the error given to displace() or fail_waiting()."""
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
        """Raises the error in everybody who waits for a slot."""
        while self._owners:
            waiter = self._pop()
            if not waiter.done():
                waiter.set_exception(error)

    def displace(self, caller: Caller, error: Exception) -> bool:
        """Makes room for a caller: the owner with the most waiters loses its newest one, which gets the error.

        Returns False if nobody has more waiters than the caller.

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
        """Removes and returns the next waiter in turn; its owner and its connection go to the end of their lines."""
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
