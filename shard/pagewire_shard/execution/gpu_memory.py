"""How much of a GPU the block pool may take: what is left beside weights, graphs and the largest step."""

import torch

from pagewire_shard.execution.device_state import DeviceState
from pagewire_shard.execution.gpu_runner import gpu_runner
from pagewire_shard.execution.graph_sizes import GraphSizes
from pagewire_shard.execution.warm_up import run_largest_step
from pagewire_shard.loading.model_loader import LoadedModel
from pagewire_shard.parallel.pipeline import StageLinks

GRAPH_LAYER_BYTES = 64 << 10
"""Memory that the driver keeps for a layer of a captured forward pass, which torch does not account for: some kilobytes
for each of ten kernels. Measured on an H200: 41 KiB."""


def bytes_left_for_caches(
    loaded: LoadedModel,
    state: DeviceState,
    *,
    block_size: int,
    num_tokens: int,
    num_logprobs: int,
    graph_sizes: GraphSizes | None,
    utilization: float,
    links: StageLinks | None = None,
) -> int:
    """Runs the largest step with caches of one block and measures what it took.

    Args:
        num_tokens: Tokens a step may compute.
        num_logprobs: Most log-probabilities that a sequence may ask for.
        graph_sizes: Steps that will be captured.
        utilization: Share of the GPU that may be used by everyone together.
        links: To the other stages of a pipeline, which all do this at the same time.

    Returns:
        Bytes; 0 or less if the model alone takes more than its share.
    """
    device = state.device
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    caches = loaded.model.spec.allocate_caches(1, block_size, loaded.cache_dtype, device)
    for tensor in (tensor for cache in caches for tensor in cache):
        tensor.zero_()
    # Smaller graphs fit into the memory of the largest.
    runner = gpu_runner(loaded.model, state, caches, block_size, graph_sizes and graph_sizes.largest, links=links)
    run_largest_step(
        runner,
        num_seqs=state.num_slots,
        num_tokens=num_tokens,
        max_model_len=state.max_model_len,
        num_logprobs=num_logprobs,
    )
    torch.cuda.synchronize(device)
    free, total = torch.cuda.mem_get_info(device)
    used_by_others = total - free - torch.cuda.memory_reserved(device)
    peak = torch.cuda.max_memory_reserved(device)
    del runner, caches
    torch.cuda.empty_cache()
    graph_bytes = graph_sizes.num_forwards * len(loaded.model.spec.layers) * GRAPH_LAYER_BYTES if graph_sizes else 0
    return int(total * utilization) - peak - used_by_others - graph_bytes
