"""Compiled grammars by the hash of their source: those that plans may name, and the most recently used others."""

from collections import Counter, OrderedDict
from dataclasses import dataclass

from llguidance import LLMatcher

MIN_ROOT_BYTES = 64 << 10
"""What a grammar counts at least: the measure is coarse."""

Key = bytes


@dataclass(frozen=True, slots=True)
class Root:
    """A grammar at its start; sequences take copies."""

    ll_matcher: LLMatcher
    num_bytes: int
    text: str
    """What it was compiled from."""


class RootCache:
    """Names point to roots, by keys. A root without a name is dropped when its memory is needed. Not thread-safe."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._roots: OrderedDict[Key, Root] = OrderedDict()
        """Least recently used first."""
        self._keys: dict[str, Key] = {}
        self._num_names: Counter[Key] = Counter()
        self.num_bytes = 0
        """Memory of all roots."""

    def __len__(self) -> int:
        return len(self._roots)

    def __contains__(self, key: Key) -> bool:
        return key in self._roots

    def get(self, key: Key) -> Root | None:
        """The root of a key; None: there is none."""
        return self._roots.get(key)

    def replace(self, key: Key, root: Root) -> None:
        """Puts another root in the place of one that is there. Its place in the order of use stays."""
        if key in self._roots:
            self._roots[key] = root

    def named(self, name: str) -> tuple[Key, Root] | None:
        """The root that a name points to, and its key; None: it points to none, or to one that is not there yet."""
        key = self._keys.get(name)
        root = None if key is None else self._roots.get(key)
        return None if key is None or root is None else (key, root)

    def name(self, name: str, key: Key) -> None:
        """Has a name point to a key, whose root may come later."""
        self.forget(name)
        self._keys[name] = key
        self._num_names[key] += 1
        if key in self._roots:
            self._roots.move_to_end(key)

    def forget(self, name: str) -> Key | None:
        """The name points to nothing any more. Returns the key that it pointed to."""
        key = self._keys.pop(name, None)
        if key is not None:
            self._num_names[key] -= 1
            if not self._num_names[key]:
                del self._num_names[key]
        return key

    def forget_all(self) -> None:
        """No name points to anything any more."""
        self._keys.clear()
        self._num_names.clear()

    def put(self, key: Key, root: Root) -> bool:
        """Keeps a root. False: those that have names leave no room for it."""
        if key in self._roots:
            return True
        for unused in [key for key in self._roots if key not in self._num_names]:
            if self.num_bytes + root.num_bytes <= self._max_bytes:
                break
            self.num_bytes -= self._roots.pop(unused).num_bytes
        if self._roots and self.num_bytes + root.num_bytes > self._max_bytes:
            return False
        self._roots[key] = root
        self.num_bytes += root.num_bytes
        return True
