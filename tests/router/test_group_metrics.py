"""The router's metrics of shard groups."""

import pytest
from pagewire.v1 import shard_pb2
from pagewire_router.groups.group_loop import GroupLoop
from pagewire_router.groups.group_metrics import GroupMetrics
from pagewire_router.groups.step_stats import StepStats


def group(group_id: str = "a", num_blocks: int = 100) -> GroupLoop:
    info = shard_pb2.ShardInfo(
        group_id=group_id,
        model="tiny",
        model_digest=b"\x01\x02",
        architecture="LlamaForCausalLM",
        dtype="float32",
        block_size=16,
        num_blocks=[num_blocks],
        max_num_seqs=8,
        max_num_batched_tokens=64,
        max_model_len=256,
    )
    return GroupLoop(
        [], info, router_id="r", max_inflight=2, on_change=lambda _: None, on_step=lambda _result, _seconds: None
    )


def samples_of(metrics: GroupMetrics) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in metrics.collect()
        for sample in family.samples
    }


def serve(group: GroupLoop, free_blocks: int) -> None:
    group.scheduler.reset(free_blocks)
    group.is_serving = True


def test_usage_is_that_of_all_blocks_of_the_groups_that_serve():
    small, large, down = group("small", 100), group("large", 300), group("down", 600)
    serve(small, 50)
    serve(large, 300)
    samples = samples_of(GroupMetrics([small, large, down], StepStats()))
    assert samples["pagewire_kv_cache_usage_ratio",] == pytest.approx(50 / 400)
    assert samples["pagewire_group_kv_cache_usage_ratio", "small"] == 0.5
    assert samples["pagewire_group_kv_cache_usage_ratio", "down"] == 0
    assert samples["pagewire_group_kv_cache_blocks", "large"] == 300


def test_a_router_without_groups_has_the_totals():
    samples = samples_of(GroupMetrics([], StepStats()))
    assert samples["pagewire_requests_queued",] == samples["pagewire_kv_cache_usage_ratio",] == 0
    assert not any(name == "pagewire_model_info" for name, *_ in samples)


def test_the_model_is_described_as_gateways_ask_for_it():
    metrics = GroupMetrics([group("a", 100), group("b", 50)], StepStats())
    (family,) = (family for family in metrics.collect() if family.name == "pagewire_model_info")
    (sample,) = family.samples
    assert sample.labels == {
        "model": "tiny",
        "digest": "0102",
        "architecture": "LlamaForCausalLM",
        "dtype": "float32",
        "max_model_len": "256",
        "block_size": "16",
        "num_gpu_blocks": "150",
    }


def test_counters_go_on_when_a_group_is_driven_anew():
    first, groups = group(), []
    groups.append(first)
    metrics = GroupMetrics(groups, StepStats())
    first.num_failovers, first.scheduler.num_preemptions = 2, 3
    first.scheduler.tokens.generated = 50
    before = samples_of(metrics)
    groups[:] = [group()]
    metrics.on_retired(first)
    assert samples_of(metrics) == before
    groups[0].num_failovers = 1
    after = samples_of(metrics)
    assert after["pagewire_failovers_total", "a"] == 3
    assert after["pagewire_preemptions_total", "a"] == 3
    assert after["pagewire_tokens_total", "a", "generation"] == 50


def test_groups_that_are_gone_are_not_shown():
    first = group()
    metrics = GroupMetrics([], StepStats())
    metrics.on_retired(first)
    assert not any(labels == ["a"] for _, *labels in samples_of(metrics))
