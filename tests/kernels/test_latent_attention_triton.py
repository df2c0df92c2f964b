"""The kernels of multi-head latent attention for GPUs against the reference in float64, on a GPU or in Triton's
interpreter.

Every float of torch.empty is NaN, so that an element which a kernel does not write is noticed.
"""

from dataclasses import fields, replace
from typing import TypeVar

import pytest
import torch
from interpreter import HAS_GPU, run_in_interpreter, runs_kernels, starts_interpreter
from latent_batches import latent_inputs, latent_rows
from pagewire_kernels.latent_and_cache import LatentRows
from pagewire_kernels.latent_and_cache import reference as cache_reference
from pagewire_kernels.latent_attention import LatentInputs, reference

pytest.importorskip("triton")
TOLERANCES = {torch.float32: 1e-5, torch.float16: 3e-3, **({torch.bfloat16: 2e-2} if HAS_GPU else {})}
SHAPES = [(4, 16, 8), (5, 24, 6), (20, 40, 8), (130, 7, 2), (16, 512, 64)]
if HAS_GPU:
    # Those of DeepSeek-V3, of half of it and of MiniCPM3, which take too long in the interpreter.
    SHAPES += [(128, 512, 64), (64, 512, 64), (40, 256, 32)]
"""num_heads, latent_dim, rope_dim."""


@pytest.mark.slow
@starts_interpreter
def test_kernels_agree_with_the_reference_in_the_interpreter() -> None:
    run_in_interpreter(__file__)


Batch = TypeVar("Batch", LatentInputs, LatentRows)


def on_device(batch: Batch) -> Batch:
    """A copy of all tensors, with their strides, where kernels run."""
    tensors = {field.name: getattr(batch, field.name) for field in fields(batch)}
    device = torch.device("cuda" if HAS_GPU else "cpu")
    placed = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, torch.Tensor):
            placed[name] = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
            placed[name].copy_(tensor)
    return replace(batch, **placed)


def in_float64(inputs: LatentInputs) -> torch.Tensor:
    """What the definition yields."""
    wide = {name: getattr(inputs, name).double() for name in ("query_latent", "query_rope", "cache")}
    return reference.latent_attention(replace(inputs, **wide))


def attend(inputs: LatentInputs, min_split_tiles: int = 1) -> None:
    """With small tiles, which make many splits, and as it is served."""
    from pagewire_kernels.latent_attention.triton import LatentConfig, latent_attention

    expected, tolerance = in_float64(inputs), TOLERANCES[inputs.cache.dtype]
    placed = on_device(inputs)
    for config in (LatentConfig(tile=16, num_stages=2, min_split_tiles=min_split_tiles), None)[: 1 + HAS_GPU]:
        out = latent_attention(placed, config).cpu().double()
        torch.testing.assert_close(out, expected, atol=tolerance, rtol=tolerance)


@runs_kernels
@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("shape", SHAPES)
def test_decodes_and_prefills_of_any_shape(
    shape: tuple[int, int, int], dtype: torch.dtype, poisoned_memory: None
) -> None:
    inputs = latent_inputs([1, 1, 9, 21], [30, 70, 20, 37], *shape, num_decodes=2, dtype=dtype)
    _, latent_dim, rope_dim = shape
    if HAS_GPU and dtype.itemsize == 2 and (latent_dim % 8 or rope_dim % 8):
        with pytest.raises(ValueError, match="not multiples of 8"):
            attend(inputs)
        return
    attend(inputs)


@runs_kernels
@pytest.mark.parametrize("block_size", [1, 8, 16, 48, 64])
def test_any_block_size(block_size: int, poisoned_memory: None) -> None:
    attend(latent_inputs([1, 3, 40], [100, 35, 66], 6, 24, 8, block_size=block_size, num_decodes=1))


@runs_kernels
@pytest.mark.parametrize("min_split_tiles", [1, 2, 8])
def test_decodes_split_over_the_context(min_split_tiles: int, poisoned_memory: None) -> None:
    lens = [1, 15, 16, 17, 0, 200, 600, 33]
    attend(latent_inputs([1] * len(lens), lens, 6, 24, 8, num_decodes=len(lens)), min_split_tiles)


@runs_kernels
@pytest.mark.parametrize("query_lens", [[1, 1, 1], [1, 4, 2]])
def test_void_rows_are_zero(query_lens: list[int], poisoned_memory: None) -> None:
    attend(latent_inputs(query_lens, [4, 0, 7], 4, 16, 8, num_decodes=1))


@runs_kernels
@pytest.mark.parametrize("num_decodes", [0, 1, 3])
def test_counts_that_only_the_device_knows(num_decodes: int, poisoned_memory: None) -> None:
    """As a captured step calls it: shapes are the most there can be, the last sequences are empty."""
    query_lens = [1] * num_decodes + [5, 20]
    inputs = latent_inputs([*query_lens, 0, 0], [40] * num_decodes + [40, 20, 0, 0], 4, 16, 8)
    padding = 6
    padded = replace(
        inputs,
        query_latent=torch.nn.functional.pad(inputs.query_latent, (0, 0, 0, 0, 0, padding)),
        query_rope=torch.nn.functional.pad(inputs.query_rope, (0, 0, 0, 0, 0, padding)),
        max_seq_len=64,
        row_counts=torch.tensor([len(query_lens), num_decodes]),
    )
    from pagewire_kernels.latent_attention.triton import latent_attention

    out = latent_attention(on_device(padded))[:-padding].cpu()
    torch.testing.assert_close(out, reference.latent_attention(inputs), atol=1e-5, rtol=1e-5)


@runs_kernels
def test_heads_and_queries_may_be_strided(poisoned_memory: None) -> None:
    inputs = latent_inputs([1, 4], [30, 9], 6, 24, 8, num_decodes=1)
    attend(replace(inputs, query_latent=inputs.query_latent.transpose(0, 1).contiguous().transpose(0, 1)))


@runs_kernels
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("num_heads", "latent_dim", "rope_dim"), [(1, 16, 8), (5, 24, 6), (40, 512, 64)])
def test_latents_and_keys_are_written(num_heads: int, latent_dim: int, rope_dim: int, interleaved: bool) -> None:
    from pagewire_kernels.latent_and_cache.triton import latent_and_cache

    rows, expected = (latent_rows(9, num_heads, latent_dim, rope_dim, interleaved) for _ in range(2))
    placed = on_device(rows)
    latent_and_cache(placed)
    cache_reference.latent_and_cache(expected)
    torch.testing.assert_close(placed.cache.cpu(), expected.cache, equal_nan=True)
    torch.testing.assert_close(placed.query_rope.cpu(), expected.query_rope)


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="needs a CUDA device")
@pytest.mark.parametrize("num_heads", [16, 20, 128])
def test_one_captured_graph_serves_any_lengths(num_heads: int, poisoned_memory: None) -> None:
    """Lengths and tables change between replays; the longest that a graph may meet decides how it splits."""
    from pagewire_kernels.latent_attention.triton import latent_attention

    batches = [
        latent_inputs([1] * 5, lens, num_heads, 512, 64, block_size=64, dtype=torch.bfloat16, num_decodes=5)
        for lens in ([1000, 1, 64, 65, 300], [5, 4, 2048, 1, 0], [2048] * 5)
    ]
    largest = max(batches, key=lambda batch: batch.cache.shape[0])
    captured = on_device(replace(largest, max_seq_len=2048))
    latent_attention(captured)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = latent_attention(captured)
    for batch in batches:
        captured.cache[: batch.cache.shape[0]].copy_(batch.cache)
        captured.block_tables.zero_()
        captured.block_tables[:, : batch.block_tables.shape[1]].copy_(batch.block_tables)
        captured.seq_lens.copy_(batch.seq_lens)
        captured.query_latent.copy_(batch.query_latent)
        captured.query_rope.copy_(batch.query_rope)
        out.fill_(torch.nan)
        graph.replay()
        torch.testing.assert_close(out.cpu().double(), in_float64(batch), atol=2e-2, rtol=2e-2)
