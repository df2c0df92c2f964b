"""Every flag that the chart gives is one that router, shard and client take, by their own parsers."""

import argparse
from collections.abc import Callable, Sequence

import pytest
from chart import Object, Pod, pods_of
from pagewire.cli import COMMANDS
from pagewire.cli.complete import add_arguments
from pagewire_router.cli import build_parser as router_parser
from pagewire_router.cli import parse_config
from pagewire_shard.cli import build_parser as shard_parser
from pod_process import VARIABLE, expand

# What the cluster fills in.
FILLED_IN = {
    "POD_NAME": "trial-pagewire-shard-1",
    "CPU_REQUEST": "2",
    "GROUP_INDEX": "1",
    "WORKER_INDEX": "3",
    "LWS_LEADER_ADDRESS": "trial-pagewire-shard-1.trial-pagewire-shard.serving",
}


def complete_parser() -> argparse.ArgumentParser:
    """The grammar of `pagewire complete`."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser


PARSERS: dict[str, Callable[[], argparse.ArgumentParser]] = {
    "router": router_parser,
    "shard": shard_parser,
    "test": complete_parser,
}


def arguments(pod: Pod) -> list[str]:
    """As the container gets them."""
    found = [expand(text, FILLED_IN) for text in pod.arguments]
    assert not [text for text in found if VARIABLE.search(text)], "a variable that nothing fills in"
    return found[1:] if found[0] in COMMANDS else found


def parse(pod: Pod) -> argparse.Namespace:
    """Parsed; wrong usage would end the process."""
    return PARSERS[pod.component]().parse_args(arguments(pod))


def one_pod(objects: Sequence[Object], component: str) -> Pod:
    (pod,) = [pod for pod in pods_of(objects) if pod.component == component]
    return pod


def test_parsers_take_every_flag(objects: list[Object]) -> None:
    for pod in pods_of(objects):
        if pod.component in PARSERS:
            parse(pod)


def test_the_router_takes_them_together(objects: list[Object]) -> None:
    config = parse_config(arguments(one_pod(objects, "router")))
    assert config.listen.endswith(":50051")
    assert (config.metrics_port, config.health_port, config.http_port) == (9400, 50059, 8000)
    assert config.max_request_time_s is not None
    assert config.drain_grace_s >= config.max_request_time_s


def test_variables_in_arguments_are_defined(objects: list[Object]) -> None:
    for pod in pods_of(objects):
        defined = {variable["name"] for variable in pod.container.get("env", [])} | {"LWS_LEADER_ADDRESS"}
        used = {name for text in pod.container.get("args", []) for name in VARIABLE.findall(text)}
        assert used <= defined


def test_values_reach_the_configuration(rendered: dict[str, list[Object]]) -> None:
    shard = parse(one_pod(rendered["gpu-hub"], "shard"))
    assert (shard.model, shard.dtype, shard.device) == ("meta-llama/Llama-3.1-8B-Instruct", "bfloat16", "cuda")
    assert (shard.max_model_len, shard.max_num_seqs, shard.max_num_batched_tokens) == (32768, 512, 16384)
    assert (shard.block_size, shard.gpu_memory_utilization) == (64, 0.92)
    shard = parse(one_pod(rendered["pvc"], "shard"))
    assert (shard.kv_cache_memory_bytes, shard.model_name, shard.listen) == (40 << 30, "qwen3", "[::]:50052")
    router = parse(one_pod(rendered["standby"], "router"))
    assert (router.max_request_time, router.max_queued_requests, router.max_queued_tokens) == (60, 100, 1_000_000)
    assert (router.step_timeout, router.shard_wait) == (20, 0)


def test_ranks_know_their_place(rendered: dict[str, list[Object]]) -> None:
    shard = parse(one_pod(rendered["tensor-parallel"], "shard"))
    assert (shard.tp_rank, shard.tp_size, shard.group_id) == (3, 4, "trial-pagewire-shard-1")
    assert shard.rendezvous == "trial-pagewire-shard-1.trial-pagewire-shard.serving:29500"


@pytest.mark.parametrize("component", sorted(PARSERS))
def test_a_parser_would_refuse_what_it_does_not_know(component: str) -> None:
    with pytest.raises(SystemExit):
        PARSERS[component]().parse_args(["--no-such-flag"])
