"""Shard groups are shared out evenly, and moved only where that helps."""

from dataclasses import dataclass, field

from pagewire.v1 import shard_pb2
from pagewire_router.groups.sharing import ADOPT_AFTER_S, HAND_BACK_PAUSE_S, Sharing


@dataclass
class Group:
    info: shard_pb2.ShardInfo
    is_serving: bool = False
    is_draining: bool = False
    load: int = 0


@dataclass
class World:
    """Groups and routers, each with the same view of who drives what; who is asked first is the test's choice."""

    num_groups: int
    routers: dict[str, Sharing] = field(default_factory=dict)
    drives: dict[str, str] = field(default_factory=dict)

    def groups(self, router: str) -> list[Group]:
        return [
            Group(shard_pb2.ShardInfo(group_id=f"g{i}"), is_serving=self.drives.get(f"g{i}") == router, load=i)
            for i in range(self.num_groups)
        ]

    def infos(self) -> list[shard_pb2.ShardInfo]:
        return [
            shard_pb2.ShardInfo(
                group_id=f"g{i}",
                lease_holder=self.drives.get(f"g{i}", ""),
                waiting_routers=sorted(self.routers.keys() - {self.drives.get(f"g{i}", "")}),
            )
            for i in range(self.num_groups)
        ]

    def start(self, *names: str) -> None:
        for name in names:
            self.routers[name] = Sharing(name)

    def kill(self, name: str) -> None:
        del self.routers[name]
        self.drives = {group: holder for group, holder in self.drives.items() if holder != name}

    def settle(self, now_s: float) -> int:
        """Everybody looks once: hands back, then takes what is free. Returns how many groups were handed back."""
        num_handed_back = 0
        for name, sharing in self.routers.items():
            sharing.update(self.infos())
            surplus = sharing.surplus(self.groups(name), now_s)
            if surplus is not None:
                del self.drives[surplus.info.group_id]
                num_handed_back += 1
        self._take(0.0)
        self._take(ADOPT_AFTER_S)
        return num_handed_back

    def _take(self, free_s: float) -> None:
        for i in range(self.num_groups):
            for name, sharing in self.routers.items():
                sharing.update(self.infos())
                if f"g{i}" not in self.drives and sharing.patience_s(self.groups(name)) <= free_s:
                    self.drives[f"g{i}"] = name

    def counts(self) -> list[int]:
        return sorted(sum(holder == name for holder in self.drives.values()) for name in self.routers)


def test_a_router_alone_takes_all_groups_at_once():
    sharing = Sharing("a")
    world = World(3)
    world.start("a")
    sharing.update(world.infos())
    assert sharing.patience_s(world.groups("a")) == 0
    world.settle(0)
    assert world.counts() == [3]
    assert world.settle(100) == 0


def test_every_number_of_routers_ends_with_an_even_share_and_stays_there():
    for num_groups in range(1, 8):
        for num_routers in range(1, 6):
            world = World(num_groups)
            world.start("r0")
            world.settle(0)
            world.start(*(f"r{i}" for i in range(1, num_routers)))
            now_s = 0.0
            for _ in range(num_groups + 2):
                now_s += HAND_BACK_PAUSE_S
                world.settle(now_s)
            counts = world.counts()
            assert sum(counts) == num_groups
            assert counts[-1] - counts[0] <= 1, (num_groups, counts)
            assert world.settle(now_s + 100) == 0, "nothing moves once all is even"


def test_the_groups_of_a_dead_router_are_adopted_by_those_that_have_enough_too():
    world = World(4)
    world.start("a", "b")
    world.settle(0)
    world.kill("a")
    world.settle(1)
    assert world.counts() == [4]


def test_groups_are_handed_back_one_at_a_time_the_least_busy_first():
    world = World(4)
    world.start("a")
    world.settle(0)
    world.start("b")
    a = world.routers["a"]
    a.update(world.infos())
    first = a.surplus(world.groups("a"), 10.0)
    assert first is not None
    assert first.info.group_id == "g0"
    assert a.surplus(world.groups("a"), 10.0 + HAND_BACK_PAUSE_S / 2) is None
    assert a.surplus(world.groups("a"), 10.0 + HAND_BACK_PAUSE_S) is not None


def test_the_only_group_is_never_handed_back():
    world = World(1)
    world.start("a")
    world.settle(0)
    world.start("b", "c")
    assert world.settle(100) == 0
