"""Faults of single requests on a shard end these requests, each with its own error, and nothing else."""

import asyncio
from pathlib import Path

import processors
import pytest
import wedges
from cluster import read_metrics, shards_and_router
from pagewire import AsyncClient, PagewireError, SamplingParams, StructuredOutputsParams
from pagewire.retry import NEVER

FAULTS = {
    "PROCESSOR_FAILED": SamplingParams(max_tokens=30, ignore_eos=True, extra_args={"fail_after": 3}),
    "NO_FINITE_LOGITS": SamplingParams(max_tokens=30, ignore_eos=True, extra_args={"not_finite": 3}),
    "INVALID_REQUEST": SamplingParams(structured_outputs=StructuredOutputsParams(grammar="start: no_such_rule")),
    "GRAMMAR_FAILED": SamplingParams(
        structured_outputs=StructuredOutputsParams(regex="[ab]{4}"), allowed_token_ids=[0], max_tokens=30
    ),
}
BYSTANDER = SamplingParams(temperature=0.0, max_tokens=120, ignore_eos=True)


@pytest.mark.slow
async def test_each_fault_ends_its_request_and_no_other(model: Path) -> None:
    names = f"{processors.__file__}:Failing,{wedges.__file__}:NotFinite"
    flags = ("--block-size", "16", "--kv-cache-memory", "32MiB", "--logits-processors", names)
    with shards_and_router(model, *flags) as cluster:
        async with AsyncClient(cluster.address, timeout_s=120, retry=NEVER) as client:
            undisturbed = await client.complete("a bystander", BYSTANDER)
            before = read_metrics(cluster.metrics_ports[0])
            bystanders = [asyncio.create_task(client.complete("a bystander", BYSTANDER)) for _ in range(4)]
            for _ in range(3):
                for reason, params in FAULTS.items():
                    with pytest.raises(PagewireError) as failed:
                        await client.complete("a bystander that asks for more", params)
                    assert failed.value.reason == reason
            for task in bystanders:
                assert (await task).outputs[0].token_ids == undisturbed.outputs[0].token_ids
            # What the failed ones left in the prefix cache is sound.
            again = await client.complete("a bystander that asks for more", BYSTANDER)
            other = await client.complete("a bystander that asks for more", BYSTANDER)
            assert again.outputs[0].token_ids == other.outputs[0].token_ids
        after = read_metrics(cluster.metrics_ports[0])
        for name in ("pagewire_shard_failed_steps_total", "pagewire_shard_refused_plans_total", "pagewire_shard_epoch"):
            assert after[name] == before[name], name
        cluster.check_all_blocks_come_back()
