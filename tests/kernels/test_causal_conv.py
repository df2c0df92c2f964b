"""causal_conv on a CPU, and its Triton kernels on a GPU or in Triton's interpreter, against the reference.

Slots that nobody writes hold NaN, and so does memory that torch.empty gives.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from interpreter import HAS_GPU, run_in_interpreter, runs_kernels, starts_interpreter
from pagewire_kernels.causal_conv import ConvInputs, cpu, reference

DEVICE = torch.device("cuda" if HAS_GPU else "cpu")
DTYPES = [torch.float32, *([torch.float16, torch.bfloat16] if HAS_GPU else [])]
TOLERANCES = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}
SHAPES = [
    # (query_lens, tokens of padding, channels, width)
    ([1, 1, 1], 0, 7, 3),
    ([1], 0, 520, 4),
    ([1, 1], 3, 7, 4),
    ([5], 0, 3, 2),
    ([1, 1, 40, 2, 1, 3], 0, 130, 4),
    ([3, 17, 1, 0, 0], 6, 9, 5),
]

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def inputs_of(
    query_lens: list[int],
    num_padding: int,
    channels: int,
    width: int,
    *,
    dtype: torch.dtype = torch.float32,
    state_dtype: torch.dtype | None = None,
    activation: str | None = None,
    in_place: bool = False,
) -> ConvInputs:
    """Every second sequence begins; the others have a state. Each reads and writes slots of its own."""
    generator = torch.Generator().manual_seed(sum(query_lens) + channels)
    num_seqs = len(query_lens)
    slots = torch.randperm(2 * num_seqs + 1, generator=generator)
    state = torch.full((2 * num_seqs + 1, width - 1, channels), torch.nan, dtype=state_dtype or dtype)
    reads, writes = slots[:num_seqs].clone(), slots[num_seqs : 2 * num_seqs].clone()
    if in_place:
        writes = reads.clone()
    for row in range(num_seqs):
        if row % 2:
            state[reads[row]] = torch.randn(width - 1, channels, generator=generator).to(state.dtype)
        else:
            reads[row] = -1
    # A slice of a wider product.
    x = torch.randn(sum(query_lens) + num_padding, channels + 5, generator=generator).to(dtype)[:, :channels]
    return ConvInputs(
        x=x,
        weight=torch.randn(channels, width, generator=generator).to(dtype),
        bias=torch.randn(channels, generator=generator).to(dtype) if channels % 2 else None,
        state=state,
        read_slots=reads.to(torch.int32),
        write_slots=writes.to(torch.int32),
        query_start_loc=torch.tensor([0, *query_lens]).cumsum(0).to(torch.int32),
        max_query_len=max(query_lens),
        activation=activation,  # type: ignore[arg-type]
    )


def on(device: torch.device, inputs: ConvInputs) -> ConvInputs:
    tensors = {name: getattr(inputs, name) for name in ConvInputs.__slots__}
    moved = {name: t.to(device, copy=True) for name, t in tensors.items() if isinstance(t, torch.Tensor)}
    return replace(inputs, **moved)


def check(conv: Callable[[ConvInputs], torch.Tensor], inputs: ConvInputs, device: torch.device) -> None:
    expected_inputs, given = on(torch.device("cpu"), inputs), on(device, inputs)
    expected, out = reference.causal_conv(expected_inputs), conv(given)
    assert out.dtype is inputs.x.dtype
    assert out.is_contiguous()
    tolerance = TOLERANCES[inputs.x.dtype]
    torch.testing.assert_close(out.cpu(), expected, atol=tolerance, rtol=tolerance)
    # States are copies of inputs, and slots that no sequence writes are as they were.
    torch.testing.assert_close(given.state.cpu(), expected_inputs.state, atol=0, rtol=0, equal_nan=True)


def test_the_reference_is_torchs_convolution_of_the_whole_sequence() -> None:
    inputs = inputs_of([9], 0, 3, 4, activation="silu")
    assert inputs.bias is not None
    whole = torch.nn.functional.conv1d(inputs.x.t()[None], inputs.weight[:, None], inputs.bias, padding=3, groups=3)[
        0, :, :9
    ].t()
    torch.testing.assert_close(reference.causal_conv(inputs), torch.nn.functional.silu(whole))


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_chunks_yield_what_the_whole_sequence_does(chunk: int) -> None:
    whole = inputs_of([11], 0, 7, 4)
    expected = reference.causal_conv(on(torch.device("cpu"), whole))
    outputs = []
    for start in range(0, 11, chunk):
        x = whole.x[start : start + chunk]
        reads = whole.read_slots if start == 0 else whole.write_slots
        starts = torch.tensor([0, len(x)], dtype=torch.int32)
        outputs.append(
            cpu.causal_conv(replace(whole, x=x, read_slots=reads, query_start_loc=starts, max_query_len=len(x)))
        )
    torch.testing.assert_close(torch.cat(outputs), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_cpu_version(shape, activation: str | None, in_place: bool) -> None:
    check(cpu.causal_conv, inputs_of(*shape, activation=activation, in_place=in_place), torch.device("cpu"))


def test_a_state_wider_than_its_inputs_on_a_cpu() -> None:
    inputs = inputs_of([1, 6, 2], 0, 7, 4, dtype=torch.bfloat16, state_dtype=torch.float32)
    check(cpu.causal_conv, inputs, torch.device("cpu"))


@starts_interpreter
def test_kernels_agree_with_the_reference_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    run_in_interpreter(__file__)


@runs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("activation", "in_place"), [(None, False), ("silu", True)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernels(shape, activation: str | None, in_place: bool, dtype: torch.dtype) -> None:
    from pagewire_kernels.causal_conv import triton as kernels

    inputs = inputs_of(*shape, dtype=dtype, activation=activation, in_place=in_place)
    check(kernels.causal_conv, inputs, DEVICE)


@runs_kernels
def test_a_state_wider_than_its_inputs() -> None:
    from pagewire_kernels.causal_conv import triton as kernels

    for query_lens in ([1, 1], [4, 1]):
        inputs = inputs_of(query_lens, 0, 7, 4, dtype=torch.float16, state_dtype=torch.float32)
        check(kernels.causal_conv, inputs, DEVICE)
