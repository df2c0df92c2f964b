"""The command lines of the child processes."""

import sys
from collections.abc import Callable, Sequence

from pagewire.serve.config import ServeConfig
from pagewire.serve.sockets import metrics_socket

ShardCommand = Callable[[ServeConfig, int, int, str, str], list[str]]
"""Makes the command of a shard from the configuration, the replica, the rank in its group, the address, and the address
where the ranks of the replica meet."""
RouterCommand = Callable[[ServeConfig, Sequence[str], str, str], list[str]]
"""Makes the command of a router from the configuration, the shards' addresses, its own and its health service's."""


SPARE_COMMAND = (sys.executable, "-m", "pagewire_shard", "--spare")
"""Starts a process that becomes a shard when it is told the arguments of one."""


def shard_command(config: ServeConfig, replica: int, rank: int, listen: str, rendezvous: str) -> list[str]:
    """Returns the command that starts one shard. The ranks of the last stage of a pipeline come first."""
    tp_size, pp_size = config.tensor_parallel_size, config.pipeline_parallel_size
    optional = {
        "--max-model-len": config.max_model_len,
        "--max-num-seqs": config.max_num_seqs,
        "--max-num-batched-tokens": config.max_num_batched_tokens,
        "--block-size": config.block_size,
        "--kv-cache-memory": config.kv_cache_memory_bytes,
        "--cpu-threads": config.cpu_threads,
        "--hf-overrides": config.hf_overrides,
        "--logits-processors": config.logits_processors,
        "--gpu-memory-utilization": config.gpu_memory_utilization,
        "--grammar-compile-timeout": config.grammar_compile_timeout_s,
        "--grammar-compile-memory": config.grammar_compile_memory_bytes,
        "--grammar-cache-memory": config.grammar_cache_memory_bytes,
        "--flight-recorder": config.flight_recorder and f"{config.flight_recorder}/shard-{replica}-{rank}.flight",
    }
    return [
        *(sys.executable, "-m", "pagewire_shard"),
        *("--model", config.model),
        *("--served-model-name", config.served_model_name or config.model),
        *("--listen", listen),
        *("--group-id", str(replica)),
        *("--tp-rank", str(rank % tp_size)),
        *("--tp-size", str(tp_size)),
        *(("--pp-rank", str(pp_size - 1 - rank // tp_size), "--pp-size", str(pp_size)) if pp_size > 1 else ()),
        *(("--rendezvous", rendezvous) if config.group_size > 1 else ()),
        *(("--enable-expert-parallel",) if config.enable_expert_parallel else ()),
        *("--device", config.device),
        *("--dtype", config.dtype),
        *(() if config.cuda_graphs else ("--no-cuda-graphs",)),
        *(() if config.structured_outputs else ("--no-structured-outputs",)),
        *(("--coerce-one-of",) if config.coerce_one_of else ()),
        *(("--lenient-json-schemas",) if config.lenient_json_schemas else ()),
        *("--load-format", config.load_format),
        *("--seed", str(config.seed)),
        *("--drain-grace", str(config.drain_grace_s)),
        *(word for flag, value in optional.items() if value is not None for word in (flag, str(value))),
        "--exit-with-parent",
    ]


def router_command(config: ServeConfig, shards: Sequence[str], listen: str, health: str) -> list[str]:
    """Returns the command that starts the router."""
    optional = {
        "--http-port": config.http_port,
        "--http-max-body-bytes": config.http_max_body_bytes,
        "--http-max-connections": config.http_max_connections,
        "--metrics-port": config.metrics_port,
        "--metrics-socket": metrics_socket(listen) if config.private_socket else None,
        "--health-port": config.health_port,
        "--tls-cert": config.tls_cert,
        "--tls-key": config.tls_key,
        "--tls-client-ca": config.tls_client_ca,
        "--api-keys": config.api_keys,
        "--jwt-jwks": config.jwt_jwks,
        "--jwt-issuer": config.jwt_issuer,
        "--jwt-audience": config.jwt_audience,
        "--client-limits": config.client_limits,
        "--generation-config": config.generation_config,
        "--max-logprobs": config.max_logprobs,
        "--tool-call-parser": config.tool_call_parser,
        "--reasoning-parser": config.reasoning_parser,
        "--max-request-time": config.max_request_time_s,
        "--step-timeout": config.step_timeout_s,
        "--shard-wait": config.shard_wait_s,
    }
    return [
        *(sys.executable, "-m", "pagewire_router"),
        *("--shards", ",".join(shards)),
        *("--listen", listen),
        *("--health-listen", health),
        *("--drain-grace", str(config.drain_grace_s)),
        *(word for flag, value in optional.items() if value is not None for word in (flag, str(value))),
        *(() if config.http_page else ("--no-http-page",)),
        *(word for origin in config.http_cors_origins for word in ("--http-cors-origin", origin)),
        *(("--trust-request-chat-template",) if config.trust_request_chat_template else ()),
        "--exit-with-parent",
    ]
