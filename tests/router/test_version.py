"""A process runs from sources that were never installed, too."""

from importlib import metadata

import pagewire_router.version
import pagewire_shard.version
import pytest


@pytest.mark.parametrize("module", [pagewire_router.version, pagewire_shard.version], ids=["router", "shard"])
def test_sources_that_are_not_installed_have_an_unknown_version(module, monkeypatch: pytest.MonkeyPatch) -> None:
    assert module.version.__wrapped__() == metadata.version("pagewire")
    monkeypatch.setattr(module, "DISTRIBUTION", "no-such-distribution")
    assert module.version.__wrapped__() == "unknown"
