"""The cache of compiled grammars."""

from typing import Any

from pagewire_shard.grammar.roots import Root, RootCache

MATCHER: Any = object()


def put(cache: RootCache, key: bytes, num_bytes: int = 10) -> bool:
    return cache.put(key, Root(MATCHER, num_bytes, ""))


def test_the_least_recently_used_without_a_name_goes_first():
    cache = RootCache(max_bytes=30)
    assert put(cache, b"a")
    assert put(cache, b"b")
    assert put(cache, b"c")
    cache.name("again", b"a")
    cache.forget("again")
    assert put(cache, b"d")
    assert [key in cache for key in (b"a", b"b", b"c", b"d")] == [True, False, True, True]
    assert cache.num_bytes == 30


def test_roots_with_names_stay_and_leave_no_room():
    cache = RootCache(max_bytes=20)
    cache.name("x", b"a")
    cache.name("y", b"b")
    assert put(cache, b"a")
    assert put(cache, b"b")
    assert not put(cache, b"c")
    cache.forget("x")
    assert put(cache, b"c")
    assert cache.named("x") is None
    assert cache.named("y") is not None


def test_several_names_of_one_root_are_counted():
    cache = RootCache(max_bytes=10)
    cache.name("x", b"a")
    cache.name("y", b"a")
    put(cache, b"a")
    cache.forget("x")
    cache.forget("x")
    assert not put(cache, b"b")
    cache.forget_all()
    assert put(cache, b"b")


def test_a_name_that_points_elsewhere_lets_go_of_what_it_pointed_to():
    cache = RootCache(max_bytes=10)
    cache.name("x", b"a")
    put(cache, b"a")
    cache.name("x", b"b")
    assert cache.named("x") is None
    assert put(cache, b"b")
    assert cache.named("x") is not None


def test_one_root_may_be_larger_than_the_limit():
    cache = RootCache(max_bytes=10)
    assert put(cache, b"a", 100)
    assert put(cache, b"b", 5)
    assert b"a" not in cache
    assert cache.num_bytes == 5
