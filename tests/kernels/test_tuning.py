"""The search for tile configurations, with a clock that knows the answer, and the tables it writes."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from pagewire_kernels.tuning.few_rows_linear import TORCH, FewRowsTile, HopperTile
from pagewire_kernels.tuning.fused_moe import MoeConfig, moe_config
from pagewire_kernels.tuning.paged_attention import HopperPrefillConfig, hopper_prefill_config

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import tune_kernels  # noqa: E402
from tuning_classes import Load, TuningClass, all_classes  # noqa: E402

START = MoeConfig(16, 32, 32, 4, 2, 64, 16, 4, 2)
CHOICES = {"up_n": (32, 64, 128), "up_warps": (4, 8), "up_stages": (2, 3)}


def clock(config: MoeConfig) -> list[float]:
    """Fastest at 64 columns and 8 warps; three stages do not fit."""
    if config.up_stages == 3:
        return [math.inf, math.inf]
    return [abs(config.up_n - 64) + 100.0, 1000.0 / config.up_warps]


def test_the_search_finds_the_fastest_and_measures_nothing_twice() -> None:
    search = tune_kernels.Search(clock)
    assert search.run(START, CHOICES) == replace(START, up_n=64, up_warps=8)
    assert len(search.measured) < 3 * 2 * 2


def test_a_start_that_does_not_run_is_left() -> None:
    search = tune_kernels.Search(clock)
    assert search.run(replace(START, up_stages=3), {"up_stages": (2, 3)}).up_stages == 2


def test_a_gain_within_the_noise_changes_nothing() -> None:
    search = tune_kernels.Search(lambda config: [1.0 - 0.005 * (config.up_n == 64)])
    assert search.run(START, CHOICES) == START


def test_what_is_compiled_ahead_is_what_a_search_asks_for() -> None:
    few = TuningClass("fused_moe", {}, START, CHOICES, [])
    search = tune_kernels.Search(clock)
    search.run(START, CHOICES)
    assert set(search.measured) <= set(tune_kernels.likely(few))
    many = TuningClass("fused_moe", {}, START, {**CHOICES, "up_k": range(10), "down_k": range(10)}, [])
    assert len(list(tune_kernels.likely(many))) < 30


def test_an_entry_takes_the_place_of_the_one_with_its_key(tmp_path: Path) -> None:
    key = {"gpu": 90, "element_bytes": 2, "max_rows": 16}
    table = [{**key, "block_m": 1, "reason": "old"}, {**key, "gpu": 0, "block_m": 2, "reason": "other"}]
    table = tune_kernels.updated(table, key, START, "new")
    table = tune_kernels.updated(table, {**key, "gpu": 100}, START, "added")
    assert [entry["reason"] for entry in table] == ["new", "other", "added"]
    tune_kernels.write_table(tmp_path / "table.json", table)
    assert json.loads((tmp_path / "table.json").read_text()) == table


def test_reasons_say_what_was_measured() -> None:
    loads = [Load("decode", lambda: None, 4e9, 0.0), Load("prompt", lambda: None, 0.0, 6e11)]
    assert tune_kernels.describe(loads, [1e-3, 1e-3], "a GPU") == (
        "Measured on a GPU. decode: 1000.0 us, 4.00 TB/s; prompt: 1000.0 us, 600 TFLOP/s."
    )


def test_every_class_starts_from_its_table_and_tries_what_its_configuration_has() -> None:
    classes = list(all_classes(90))
    assert len({each.name for each in classes}) == len(classes)
    for each in classes:
        assert set(each.choices) <= set(type(each.start).__dataclass_fields__)
        assert each.loads
        assert (tune_kernels.TABLES / f"{each.table}.json").exists()


def test_the_kernel_for_hopper_is_tuned_on_hopper_alone() -> None:
    pytest.importorskip("pagewire_kernels.paged_attention.hopper_prefill")
    queries = {gpu: [each.key["query"] for each in all_classes(gpu) if "query" in each.key] for gpu in (80, 90, 100)}
    # Heads of 64 and of 128 elements.
    assert {gpu: queries[gpu].count("hopper_prefill") for gpu in queries} == {80: 0, 90: 2, 100: 0}
    assert all(queries[gpu].count("prefill") == 2 for gpu in queries)


def test_the_kernel_for_hopper_has_entries_for_what_it_serves_and_nothing_else() -> None:
    assert hopper_prefill_config(90, 64, 2) == HopperPrefillConfig(tile=128, num_stages=4)
    assert hopper_prefill_config(90, 128, 2) == HopperPrefillConfig(tile=128, num_stages=2)
    others = ((90, 256, 2), (90, 128, 4), (80, 128, 2), (100, 64, 2))
    assert [hopper_prefill_config(*other) for other in others] == [None] * len(others)


def test_a_tile_for_few_rows_has_to_beat_torch() -> None:
    classes = [each for each in all_classes(90) if each.table == "few_rows_linear"]
    assert classes
    for each in classes:
        assert each.start == TORCH
        (tiles,) = each.choices.values()
        assert len(set(tiles)) == len(tiles) <= 40
        # Tiles without tensor cores serve a single row; the kernel for Hopper is timed in layers.
        kinds = {type(tile) for tile in tiles if tile is not None}
        assert kinds == {FewRowsTile if each.key["max_rows"] == 1 else HopperTile}
    assert all(each.key["max_rows"] == 1 for each in all_classes(80) if each.table == "few_rows_linear")


def test_generations_without_entries_use_the_common_ones() -> None:
    assert moe_config(75, 2, 1) == moe_config(0, 2, 1)


@pytest.mark.parametrize("path", sorted(tune_kernels.TABLES.glob("*.json")), ids=lambda path: path.stem)
def test_every_entry_has_a_reason(path: Path) -> None:
    assert [entry for entry in json.loads(path.read_text()) if len(entry["reason"]) < 20] == []
