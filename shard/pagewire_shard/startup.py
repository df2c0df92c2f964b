"""Builds a shard's engine: loads the model, sizes the pool, allocates the device state."""

import logging
import os
import secrets
import sys
from bisect import bisect_right
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import torch
from pagewire.v1 import shard_pb2
from pagewire_common.cache_groups import STATES_PER_SEQUENCE, CacheGroups
from pagewire_common.protocol import MAX_SCORES, PROTOCOL_MAJOR, PROTOCOL_MINOR
from pagewire_kernels.sample.columns import MAX_BAD_WORD_TOKENS

from pagewire_shard.config import ShardConfig
from pagewire_shard.engine.block_pool import BlockPool
from pagewire_shard.engine.engine import Engine
from pagewire_shard.errors import BadOption, PoolTooSmall
from pagewire_shard.execution.device_state import DeviceState
from pagewire_shard.execution.graph_sizes import GraphSizes, graph_sizes
from pagewire_shard.execution.model_runner import ModelRunner
from pagewire_shard.execution.warm_up import run_largest_step, warm_up
from pagewire_shard.grammar.grammars import Grammars
from pagewire_shard.host_memory import memory_limit_bytes
from pagewire_shard.layers.cache_layout import CacheLayout, plan_layout
from pagewire_shard.layers.forward_batch import KVCache
from pagewire_shard.limits import CPU_CORE_FLOPS, Asked, DeviceFacts, Limits, ModelFacts, choose_limits, gpu_flops
from pagewire_shard.loading.model_loader import LoadedModel, load_model
from pagewire_shard.logits_processors.interface import ModelConfig, ProcessorConfig, SchedulerConfig
from pagewire_shard.logits_processors.loading import load_processors
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.parallel.collectives import Collectives
from pagewire_shard.parallel.pipeline import StageLinks
from pagewire_shard.parallel.shard_group import ShardGroup
from pagewire_shard.parallel.stage import Stage
from pagewire_shard.pool_sizes import PoolSizes, divide_pool, most_seqs_with_states
from pagewire_shard.sampling.processing import LogitsProcessing

logger = logging.getLogger(__name__)

MEASURED_LOGPROBS = 20
"""What every sequence asks for in the step that memory is measured by. Those that ask for more than a few hundred are
gathered one by one."""
CPU_POOL_BYTES = 2 << 30
"""The pool on a CPU, unless a quarter of the memory that the process may use is less. Pages of it are taken as they
are first written."""
SMALL_MODEL_BYTES = 64 << 20
"""Below this a decode step is too short to gain from all cores, and the router needs one."""
GPU_BLOCK_SIZES = (16, 32, 64, 128)


def build_engine(
    config: ShardConfig,
    model_dir: Path,
    model_digest: bytes,
    grammars: Grammars | None = None,
    group: ShardGroup | None = None,
) -> Engine:
    """Loads the model and allocates everything a shard needs.

    Args:
        grammars: Those that admissions may name.
        group: The shard's place among the ranks of its group, which all build their engines at the same time; None: the
            shard is alone.

    Raises:
        ModelError: the model cannot be served; the message says why.
    """
    device = _device(config)
    if device.type == "cpu":
        _set_cpu_threads(config.cpu_threads or max(1, (os.cpu_count() or 1) // config.group_size))
    collectives = group.join(device) if group is not None else None
    links = group.links() if group is not None else None
    loaded = _load(config, model_dir, device, collectives)
    if device.type == "cpu" and config.cpu_threads is None and loaded.weight_bytes < SMALL_MODEL_BYTES:
        _set_cpu_threads(max(1, ((os.cpu_count() or 1) - 1) // config.group_size))
    agreed = _Agreement(group, device, collectives)
    limits = agreed.limits(_limits(config, loaded, device))
    layout = _layout(loaded.model.spec, limits)
    loaded.model.layer_tables = layout.layer_tables
    state = _state(limits, layout, device)
    chosen, pool = limits, agreed.pool(_pool_sizes(config, loaded, limits, layout, state, links))
    limits = replace(limits, max_num_seqs=pool.max_num_seqs)
    if _max_len(limits, layout, pool.num_blocks) < limits.max_model_len:
        limits = _lowered(config, limits, layout, pool.num_blocks)
    if limits != chosen:
        del state  # before the smaller one is allocated
        state = _state(limits, layout, device)
    places = layout.allocate_places(pool.num_blocks, limits.block_size, loaded.cache_dtype, device)
    caches = layout.layers_in(places, limits.block_size, loaded.cache_dtype, device, pool.num_states)
    runner = _runner(config, loaded, limits, state, caches, places, links)
    if runner.samples:
        runner.sampler.processing = _processing(config, loaded, limits, device)
    warm_up(runner, limits.block_size)
    info = _describe(config, loaded, limits, layout, pool, device, model_digest)
    print(_start_line(config, loaded, limits, layout, pool), file=sys.stderr, flush=True)
    blocks = BlockPool(pool.num_blocks, limits.block_size)
    storages = {tensor.untyped_storage() for cache in caches for tensor in cache}
    return Engine(info, runner, blocks, grammars, sum({each.data_ptr(): each.nbytes() for each in storages}.values()))


@dataclass(frozen=True, slots=True)
class _Agreement:
    """What all ranks of a group go on with, where their devices or their parts of the model differ."""

    group: ShardGroup | None
    """None: the shard is alone."""
    device: torch.device
    collectives: Collectives | None

    def limits(self, limits: Limits) -> Limits:
        """The limits that all ranks can keep."""
        return replace(
            limits,
            max_num_seqs=self._least(limits.max_num_seqs),
            max_num_batched_tokens=self._least(limits.max_num_batched_tokens),
        )

    def pool(self, pool: PoolSizes) -> PoolSizes:
        """The pools that all ranks have room for."""
        return pool if self.group is None else PoolSizes(*(self._least(size) for size in astuple(pool)))

    def _least(self, value: int) -> int:
        return value if self.group is None else self.group.least(value, self.device, self.collectives)


def _layout(spec: DecoderSpec, limits: Limits) -> CacheLayout:
    """Where the layers' caches are: those of all stages of a pipeline are planned alike."""
    first, end = spec.first_layer, spec.first_layer + len(spec.layers)
    return plan_layout((spec.all_stages or spec).layers, limits.max_model_len, range(first, end))


def _start_line(config: ShardConfig, loaded: LoadedModel, limits: Limits, layout: CacheLayout, pool: PoolSizes) -> str:
    num_blocks = pool.num_blocks
    groups, num_full = _groups(limits, layout), -(-limits.max_model_len // limits.block_size)
    num_tokens = num_blocks // groups.num_tables * limits.block_size
    held = f"the KV cache holds {num_tokens:,} tokens"
    if groups.windows:
        num_held = groups.num_full_tables * num_full + groups.most_window_blocks(limits.max_model_len, 1)
        num_long = num_blocks * limits.max_model_len // num_held
        held += f" of short sequences, {num_long:,} of sequences of {limits.max_model_len:,}"
    if pool.num_states:
        held += f"; there are {pool.num_states:,} states, of which sequences take {limits.max_num_seqs:,}"
    return f"{config.model_name}: {limits.line()}; {held}; {loaded.precision}"


def _processing(
    config: ShardConfig, loaded: LoadedModel, limits: Limits, device: torch.device
) -> LogitsProcessing | None:
    if not config.logits_processors:
        return None
    model = ModelConfig(config.model_name, limits.max_model_len, loaded.model.spec.vocab_size)
    processor_config = ProcessorConfig(model, SchedulerConfig(limits.max_num_seqs))
    return LogitsProcessing(load_processors(config.logits_processors), processor_config, device)


def _state(limits: Limits, layout: CacheLayout, device: torch.device) -> DeviceState:
    return DeviceState(limits.max_num_seqs, limits.max_model_len, limits.block_size, device, layout.table_parts)


def _groups(limits: Limits, layout: CacheLayout) -> CacheGroups:
    return CacheGroups(limits.block_size, limits.max_num_batched_tokens, layout.groups)


def _max_len(limits: Limits, layout: CacheLayout, num_blocks: int) -> int:
    """The longest sequence that so many blocks hold, in whole blocks; not much more than max_model_len."""
    lengths = range(0, limits.max_model_len + limits.block_size, limits.block_size)
    return lengths[bisect_right(lengths, num_blocks, key=_groups(limits, layout).blocks_alone) - 1]


def _device(config: ShardConfig) -> torch.device:
    if config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise BadOption("--device cuda: no CUDA device is visible; use --device cpu or auto")
    return torch.device("cuda", torch.cuda.current_device())


def _load(config: ShardConfig, model_dir: Path, device: torch.device, collectives: Collectives | None) -> LoadedModel:
    try:
        return load_model(
            model_dir,
            device=device,
            dtype=config.dtype,
            load_format=config.load_format,
            seed=config.seed,
            hf_overrides=config.hf_overrides,
            collectives=collectives,
            stage=Stage(config.pp_rank, config.pp_size),
        )
    except torch.OutOfMemoryError:
        free, total = torch.cuda.mem_get_info(device)
        taken = torch.cuda.memory_reserved(device)
        raise PoolTooSmall(
            f"{config.model}: its weights do not fit into the GPU, which has {total:,} bytes, of them {free + taken:,} "
            "free of other processes; give --dtype of fewer bytes, or a GPU with more memory"
        ) from None


def _set_cpu_threads(num_threads: int) -> None:
    from pagewire_kernels.cpu.threads import set_num_threads

    set_num_threads(num_threads)


def _limits(config: ShardConfig, loaded: LoadedModel, device: torch.device) -> Limits:
    on_gpu = device.type == "cuda"
    own_len = loaded.model.spec.max_position
    max_model_len = config.max_model_len or own_len
    if max_model_len > own_len:
        raise BadOption(f"--max-model-len {max_model_len}: {config.model} was made for at most {own_len} tokens")
    asked = Asked(config.max_num_seqs, config.max_num_batched_tokens, config.block_size, config.kv_cache_memory_bytes)
    limits = choose_limits(asked, _device_facts(config, loaded, device), _model_facts(loaded, max_model_len))
    if on_gpu and limits.block_size not in GPU_BLOCK_SIZES:
        raise BadOption(f"--block-size {limits.block_size}: on a GPU one of {', '.join(map(str, GPU_BLOCK_SIZES))}")
    return limits


def _model_facts(loaded: LoadedModel, max_model_len: int) -> ModelFacts:
    spec = loaded.model.spec
    return ModelFacts(
        weight_bytes=loaded.weight_bytes,
        kv_bytes_per_token=spec.block_bytes(1, loaded.cache_dtype),
        flops_per_token=2.0 * spec.num_active_weights,
        max_model_len=max_model_len,
        state_bytes=spec.state_bytes(loaded.cache_dtype),
    )


def _device_facts(config: ShardConfig, loaded: LoadedModel, device: torch.device) -> DeviceFacts:
    if device.type == "cpu":
        num_threads = torch.get_num_threads()
        # Weights and pool are not taken from one share here: the pool has a size of its own.
        memory_bytes = loaded.weight_bytes + _cpu_pool_bytes()
        return DeviceFacts(
            "cpu",
            f"{num_threads} CPU thread{'' if num_threads == 1 else 's'}",
            memory_bytes,
            num_threads * CPU_CORE_FLOPS,
        )
    properties = torch.cuda.get_device_properties(device)
    flops = gpu_flops(
        properties.multi_processor_count, (properties.major, properties.minor), loaded.cache_dtype.itemsize
    )
    memory_bytes = int(properties.total_memory * config.gpu_memory_utilization)
    return DeviceFacts("cuda", properties.name, memory_bytes, flops)


def _graph_sizes(config: ShardConfig, limits: Limits) -> GraphSizes | None:
    return graph_sizes(limits.max_num_seqs, limits.max_num_batched_tokens) if config.cuda_graphs else None


def _runner(
    config: ShardConfig,
    loaded: LoadedModel,
    limits: Limits,
    state: DeviceState,
    caches: list[KVCache],
    places: list[KVCache],
    links: StageLinks | None,
) -> ModelRunner:
    if state.device.type == "cpu":
        return ModelRunner(loaded.model, state, caches, limits.block_size, places=places, links=links)
    from pagewire_shard.execution.gpu_runner import gpu_runner

    runner = gpu_runner(loaded.model, state, caches, limits.block_size, _graph_sizes(config, limits), places, links)
    # Takes the memory that a step needs beside its graphs, such as that of log-probabilities.
    run_largest_step(
        runner,
        num_seqs=limits.max_num_seqs,
        num_tokens=limits.max_num_batched_tokens,
        max_model_len=limits.max_model_len,
        num_logprobs=MEASURED_LOGPROBS,
    )
    return runner


def _lowered(config: ShardConfig, limits: Limits, layout: CacheLayout, num_blocks: int) -> Limits:
    """The limits with the longest sequence that the pool holds; only where --max-model-len leaves it open."""
    max_model_len = _max_len(limits, layout, num_blocks)
    logger.warning(
        "%s: the KV cache holds %d tokens, so max_model_len is %d, not the model's own %d; --kv-cache-memory%s or "
        "--max-model-len changes that",
        config.model,
        max_model_len,
        max_model_len,
        limits.max_model_len,
        "" if config.kv_cache_memory_bytes is not None else ", on a GPU --gpu-memory-utilization,",
    )
    return replace(limits, max_model_len=max_model_len)


def _pool_sizes(
    config: ShardConfig,
    loaded: LoadedModel,
    limits: Limits,
    layout: CacheLayout,
    state: DeviceState,
    links: StageLinks | None,
) -> PoolSizes:
    spec = loaded.model.spec
    block_bytes = layout.block_bytes(limits.block_size, loaded.cache_dtype)
    state_bytes = layout.state_bytes(loaded.cache_dtype)
    needed = _groups(limits, layout).blocks_alone(limits.max_model_len)
    if config.kv_cache_memory_bytes is not None:
        available = config.kv_cache_memory_bytes
    elif state.device.type == "cpu":
        available = _cpu_pool_bytes()
    else:
        available = _gpu_pool_bytes(config, loaded, limits, state, links)
    max_num_seqs = limits.max_num_seqs
    if state_bytes and config.max_num_seqs is None:
        max_num_seqs = min(max_num_seqs, most_seqs_with_states(max(available, 0), state_bytes))
    pool = divide_pool(
        max(available, 0),
        block_bytes,
        state_bytes,
        block_size=limits.block_size,
        max_num_seqs=max_num_seqs,
        blocks_of_longest=needed,
        has_states=any(layer.mixer.state for layer in (spec.all_stages or spec).layers),
    )
    least = needed if config.max_model_len is not None else _groups(limits, layout).blocks_alone(1)
    if pool.num_blocks < least:
        fits = _max_len(limits, layout, pool.num_blocks)
        needed_bytes = needed * block_bytes + STATES_PER_SEQUENCE * max_num_seqs * state_bytes
        raise PoolTooSmall(_too_small(config, limits, available, fits, needed_bytes))
    return pool


def _too_small(config: ShardConfig, limits: Limits, available: int, fits: int, needed_bytes: int) -> str:
    ways = [f"--kv-cache-memory {needed_bytes}"]
    if fits:
        ways.append(f"--max-model-len {fits}")
    if config.kv_cache_memory_bytes is None:
        ways.append("more --gpu-memory-utilization, or fewer --max-num-batched-tokens or --max-num-seqs on a GPU")
    return (
        f"{config.model}: a KV cache of {max(available, 0)} bytes holds {fits} tokens, fewer than max_model_len "
        f"{limits.max_model_len}; give {' or '.join(ways)}"
    )


def _gpu_pool_bytes(
    config: ShardConfig, loaded: LoadedModel, limits: Limits, state: DeviceState, links: StageLinks | None
) -> int:
    from pagewire_shard.execution.gpu_memory import bytes_left_for_caches

    try:
        return bytes_left_for_caches(
            loaded,
            state,
            block_size=limits.block_size,
            num_tokens=limits.max_num_batched_tokens,
            num_logprobs=MEASURED_LOGPROBS,
            graph_sizes=_graph_sizes(config, limits),
            utilization=config.gpu_memory_utilization,
            links=links,
        )
    except torch.OutOfMemoryError:
        raise PoolTooSmall(
            f"{config.model}: its weights take {loaded.weight_bytes} bytes, and the GPU has no room for a step of "
            f"{limits.max_num_batched_tokens} tokens for {limits.max_num_seqs} sequences beside them; give fewer "
            "--max-num-batched-tokens or --max-num-seqs"
        ) from None


def _cpu_pool_bytes() -> int:
    return min(CPU_POOL_BYTES, memory_limit_bytes() // 4)


def _describe(
    config: ShardConfig,
    loaded: LoadedModel,
    limits: Limits,
    layout: CacheLayout,
    pool: PoolSizes,
    device: torch.device,
    model_digest: bytes,
) -> shard_pb2.ShardInfo:
    return shard_pb2.ShardInfo(
        group_id=config.group_id,
        tp_rank=config.tp_rank,
        tp_size=config.tp_size,
        pp_rank=config.pp_rank,
        pp_size=config.pp_size,
        model=config.model_name,
        model_digest=model_digest,
        architecture=loaded.hf_config.architecture,
        dtype=loaded.dtype_name,
        device=str(device),
        block_size=limits.block_size,
        num_blocks=[pool.num_blocks],
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        max_model_len=limits.max_model_len,
        vocab_size=loaded.hf_config.vocab_size,
        max_logprobs=loaded.hf_config.vocab_size,
        max_scores=min(MAX_SCORES, loaded.hf_config.vocab_size),
        max_bad_word_tokens=MAX_BAD_WORD_TOKENS,
        eos_token_ids=loaded.hf_config.eos_token_ids,
        incarnation=secrets.randbits(64),
        protocol_major=PROTOCOL_MAJOR,
        protocol_minor=PROTOCOL_MINOR,
        logits_processors=config.logits_processors,
        longest_short=loaded.model.spec.longest_short,
        cache_groups=[
            *(shard_pb2.CacheGroup(window=group.window, num_tables=group.num_tables) for group in layout.groups),
            *([shard_pb2.CacheGroup(num_states=pool.num_states)] if pool.num_states else []),
        ],
    )
