"""Runs batches on a GPU: as CUDA graphs, or operation after operation, and never with a wait.

The host is ahead of the device all the time: what it sends goes through pinned memory, what comes back is copied on a
stream of its own and marked by an event, and step k + 1 is launched while step k runs.
"""

from pagewire_kernels.paged_attention.shared_prefixes import PlanLayout

from pagewire_shard.engine.runner import BatchMasks, RunBatch
from pagewire_shard.execution.device_state import DeviceState
from pagewire_shard.execution.graph_capture import Capturer, CudaCapturer
from pagewire_shard.execution.graph_sizes import GraphSizes
from pagewire_shard.execution.host_transfer import Downlink, Uplink
from pagewire_shard.execution.model_runner import ModelRunner
from pagewire_shard.execution.pinned_transfer import PinnedDownlink, PinnedUplink
from pagewire_shard.execution.prefix_sharing import PrefixSharing
from pagewire_shard.execution.step_graphs import StepGraphs
from pagewire_shard.execution.step_report import StepOutput
from pagewire_shard.layers.attention import AttentionSpec
from pagewire_shard.layers.forward_batch import KVCache
from pagewire_shard.models.decoder import Decoder
from pagewire_shard.parallel.pipeline import StageLinks


class GraphRunner(ModelRunner):
    """A ModelRunner whose steps have been captured. It runs those that no graph holds as its base class does."""

    def __init__(
        self,
        model: Decoder,
        state: DeviceState,
        kv_caches: list[KVCache],
        block_size: int,
        uplink: Uplink,
        downlink: Downlink,
        capturer: Capturer,
        sizes: GraphSizes,
        sharing: PrefixSharing | None = None,
        places: list[KVCache] | None = None,
        links: StageLinks | None = None,
    ) -> None:
        """Captures steps of these sizes."""
        super().__init__(model, state, kv_caches, block_size, uplink, downlink, sharing, places, links)
        pipeline = None if links is None else links.pipeline
        self.graphs = StepGraphs(model, state, self.sampler, kv_caches, block_size, sizes, sharing, pipeline)
        self.graphs.capture(capturer)

    def _forward(self, batch: RunBatch) -> None:
        if self.graphs.holds(batch) and not self.prompt_scorer.wants(batch):
            self.graphs.forward(batch, self.uplink)
        else:
            super()._forward(batch)

    def _sample(self, batch: RunBatch, masks: BatchMasks | None) -> StepOutput:
        if self._passed is None:
            return self.graphs.sample(batch, self.uplink, self.downlink, masks)
        return super()._sample(batch, masks)


def gpu_runner(
    model: Decoder,
    state: DeviceState,
    kv_caches: list[KVCache],
    block_size: int,
    sizes: GraphSizes | None,
    places: list[KVCache] | None = None,
    links: StageLinks | None = None,
) -> ModelRunner:
    """The runner for a CUDA device, which must be the current one.

    Args:
        sizes: Steps to capture; None: every step is run operation after operation.
        places, links: See ModelRunner.
    """
    uplink, downlink = PinnedUplink(state.device), PinnedDownlink(state.num_slots)
    sharing = prefix_sharing(model, state, kv_caches, block_size)
    if sizes is None:
        return ModelRunner(model, state, kv_caches, block_size, uplink, downlink, sharing, places, links)
    return GraphRunner(
        model, state, kv_caches, block_size, uplink, downlink, CudaCapturer(), sizes, sharing, places, links
    )


def prefix_sharing(
    model: Decoder, state: DeviceState, kv_caches: list[KVCache], block_size: int
) -> PrefixSharing | None:
    """Returns what plans the sharing of prefixes; None: the model has no layer that attends to whole sequences."""
    from pagewire_kernels.paged_attention.triton_shared import plan_layout

    layouts: list[PlanLayout] = []
    bytes_per_token = 0
    for layer, kv_cache in zip(model.spec.layers, kv_caches, strict=True):
        mixer = layer.mixer
        if not isinstance(mixer, AttentionSpec) or mixer.sliding_window:
            continue
        key_cache = kv_cache[0]
        num_kv_heads, head_dim = key_cache.shape[2:]
        layouts.append(
            plan_layout(
                state.device,
                state.num_slots,
                num_kv_heads=num_kv_heads,
                group_size=mixer.num_heads // mixer.num_kv_heads,
                head_dim=head_dim,
                element_bytes=key_cache.element_size(),
                block_size=block_size,
            )
        )
        bytes_per_token = 2 * num_kv_heads * head_dim * key_cache.element_size()
    if not layouts:
        return None
    # Layers of several shapes share a plan that fits each of them.
    layout = PlanLayout(
        max_rows=state.num_slots,
        rows_per_tile=min(layout.rows_per_tile for layout in layouts),
        num_shares=max(layout.num_shares for layout in layouts),
        tile=max(layout.tile for layout in layouts),
    )
    return PrefixSharing(layout, state, block_size, bytes_per_token)
