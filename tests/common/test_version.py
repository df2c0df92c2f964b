"""A process runs from sources that were never installed, too."""

from importlib import metadata

import pagewire_common.version
import pytest


def test_sources_that_are_not_installed_have_an_unknown_version(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pagewire_common.version.version.__wrapped__() == metadata.version("pagewire")
    monkeypatch.setattr(pagewire_common.version, "DISTRIBUTION", "no-such-distribution")
    assert pagewire_common.version.version.__wrapped__() == "unknown"
