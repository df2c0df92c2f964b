"""The mixture of experts against its reference: on the GPU if there is one, else in Triton's interpreter."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from interpreter import HAS_GPU, run_in_interpreter, runs_kernels, starts_interpreter
from pagewire_kernels.fused_moe import ClampedSwiglu, Gate, RouterSpec, fused_moe, reference, route
from pagewire_kernels.tuning.fused_moe import MoeConfig, moe_config

DEVICE = torch.device("cuda" if HAS_GPU else "cpu")
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if HAS_GPU else [])]
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
SMALL = MoeConfig(16, 32, 32, 4, 2, 64, 16, 4, 2)
BEST_2 = RouterSpec(2, renormalise=True)
ROUTERS = {
    "sigmoid": RouterSpec(3, "sigmoid"),
    "sigmoid, scaled": RouterSpec(3, "sigmoid", renormalise=True, scale=2.5),
    "sigmoid, groups": RouterSpec(3, "sigmoid", renormalise=True, num_groups=4, top_groups=2),
    "softmax, groups by their best": RouterSpec(3, num_groups=3, top_groups=2, group_best=1, scale=16.0),
    "softmax, little left": RouterSpec(2, renormalise=True, min_total=0.5),
    "sparsemixer": RouterSpec(2, "sparsemixer", tolerance=0.5),
}

pytest.importorskip("triton")


@starts_interpreter
def test_kernels_agree_with_their_reference_in_the_interpreter() -> None:
    run_in_interpreter(__file__)


def inputs(
    num_tokens: int, hidden: int, size: int, num_experts: int, dtype: torch.dtype, device: torch.device = DEVICE
) -> list[torch.Tensor]:
    """Made where they are used: a CPU takes seconds to draw real weights, and longer to multiply them in float64."""
    generator = torch.Generator(device).manual_seed(num_tokens)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    # Rows of x as a slice of something wider.
    x = random(num_tokens, hidden + 8)[:, :hidden]
    logits = random(num_tokens, num_experts)
    gate_up = random(num_experts, 2 * size, hidden) * hidden**-0.5
    down = random(num_experts, hidden, size) * size**-0.5
    return [tensor.to(dtype) for tensor in (x, logits, gate_up, down)]


def poisoned_memory() -> None:
    """Freed memory full of NaN: the next torch.empty is likely to get it."""
    for num_elements in (1 << 10, 1 << 14, 1 << 18):
        torch.full((num_elements,), float("nan"), device=DEVICE)


Biases = tuple[torch.Tensor, torch.Tensor]


def relative_error(
    out: torch.Tensor,
    tensors: list[torch.Tensor],
    router: RouterSpec,
    correction: torch.Tensor | None = None,
    biases: Biases | None = None,
    gate: Gate = "silu",
    scales: torch.Tensor | None = None,
) -> float:
    x, logits, gate_up, down = tensors
    wide = biases and (biases[0].double(), biases[1].double())
    expected = reference.fused_moe(
        x.double(), logits.float(), gate_up.double(), down.double(), router, correction, wide, gate, scales
    )
    return float((out.double() - expected).norm() / expected.norm())


def check(
    tensors: list[torch.Tensor],
    router: RouterSpec,
    config: MoeConfig | None = SMALL,
    correction: torch.Tensor | None = None,
    biases: Biases | None = None,
    gate: Gate = "silu",
    scales: torch.Tensor | None = None,
) -> None:
    from pagewire_kernels.fused_moe import triton as kernel

    poisoned_memory()
    out = kernel.fused_moe(*tensors, router, correction, biases, gate, scales, config=config)
    assert out.dtype is tensors[0].dtype
    assert relative_error(out, tensors, router, correction, biases, gate, scales) <= TOLERANCES[tensors[0].dtype]


@runs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_tokens", [1, 5, 64, 90])
def test_tokens_go_through_their_experts(num_tokens: int, dtype: torch.dtype) -> None:
    check(inputs(num_tokens, 48, 40, 6, dtype), BEST_2)


@runs_kernels
@pytest.mark.parametrize(("num_experts", "top_k"), [(1, 1), (5, 1), (5, 5), (12, 3), (33, 8)])
def test_any_number_of_experts_and_choices(num_experts: int, top_k: int) -> None:
    check(inputs(7, 32, 20, num_experts, torch.float32), RouterSpec(top_k, renormalise=True))


@runs_kernels
def test_weights_are_the_whole_softmax_without_renormalisation() -> None:
    check(inputs(9, 32, 32, 6, torch.float32), RouterSpec(2))


@runs_kernels
@pytest.mark.parametrize("num_tokens", [5, 70])
@pytest.mark.parametrize("router", ROUTERS.values(), ids=ROUTERS)
def test_every_kind_of_router(router: RouterSpec, num_tokens: int) -> None:
    check(inputs(num_tokens, 32, 20, 12, torch.float32), router)


@runs_kernels
@pytest.mark.parametrize("num_tokens", [5, 70])
@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
def test_a_correction_decides_the_choice_and_not_the_weights(scoring: str, num_tokens: int) -> None:
    tensors = inputs(num_tokens, 32, 20, 12, torch.float32)
    correction = torch.linspace(1, -1, 12, device=DEVICE)[torch.arange(12, device=DEVICE) * 5 % 12]
    router = RouterSpec(3, scoring, renormalise=True, num_groups=4, top_groups=2)
    check(tensors, router, correction=correction)
    check(tensors, replace(router, num_groups=1, top_groups=1), correction=correction)


@runs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "gate", ["silu", "gelu_tanh", "relu2", ClampedSwiglu(1.702, 7.0), ClampedSwiglu(2.0, 0.5)], ids=str
)
@pytest.mark.parametrize("has_biases", [False, True])
def test_biases_and_gates(has_biases: bool, gate: Gate, dtype: torch.dtype) -> None:
    tensors = inputs(21, 48, 40, 6, dtype)
    tensors[0][3] *= 30  # beyond the limit
    if gate == "relu2":
        tensors = (*tensors[:2], tensors[2][:, :40].contiguous(), tensors[3])
    generator = torch.Generator(DEVICE).manual_seed(1)
    sizes = [tensors[2].shape[1], tensors[3].shape[1]]
    up_bias, down_bias = (torch.randn(6, size, generator=generator, device=DEVICE).to(dtype) for size in sizes)
    check(tensors, BEST_2, biases=(up_bias, down_bias) if has_biases else None, gate=gate)


@runs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_factor_of_each_expert(dtype: torch.dtype) -> None:
    scales = torch.linspace(0.3, 2.0, 6, device=DEVICE).to(dtype)
    check(inputs(21, 48, 40, 6, dtype), BEST_2, scales=scales)


@runs_kernels
@pytest.mark.parametrize(("num_tokens", "top_k"), [(5, 3), (70, 3), (70, 1)])
def test_ranks_that_hold_some_experts_each_add_up_to_all(num_tokens: int, top_k: int) -> None:
    from pagewire_kernels.fused_moe import triton as kernel

    tensors = inputs(num_tokens, 32, 20, 6, torch.float32)
    x, logits, gate_up, down = tensors
    biases = (torch.linspace(-1, 1, 6 * 40, device=DEVICE).view(6, 40), torch.ones(6, 32, device=DEVICE))
    scales = torch.linspace(0.3, 2.0, 6, device=DEVICE)
    router, total = RouterSpec(top_k, renormalise=True), torch.zeros_like(x)
    for first in (0, 2, 4):
        held = slice(first, first + 2)
        own = gate_up[held], down[held]
        poisoned_memory()
        options = {"biases": (biases[0][held], biases[1][held]), "scales": scales, "first_expert": first}
        out = kernel.fused_moe(x, logits, *own, router, config=SMALL, **options)
        torch.testing.assert_close(out, reference.fused_moe(x, logits, *own, router, **options))
        total += out
    assert relative_error(total, tensors, router, biases=biases, scales=scales) <= TOLERANCES[torch.float32]


@runs_kernels
@pytest.mark.parametrize("has_biases", [False, True])
def test_weights_of_the_inputs(has_biases: bool) -> None:
    tensors = inputs(21, 48, 40, 6, torch.float32)
    biases = (torch.linspace(-1, 1, 6 * 80, device=DEVICE).view(6, 80), torch.ones(6, 48, device=DEVICE))
    check(tensors, RouterSpec(2, "sigmoid", weighs_inputs=True), biases=biases if has_biases else None)


@runs_kernels
@pytest.mark.parametrize("num_tokens", [37, 70])
def test_all_tokens_may_choose_the_same_experts(num_tokens: int) -> None:
    tensors = inputs(num_tokens, 32, 20, 8, torch.float32)
    tensors[1][:, 2] += 50
    tensors[1][:, 7] += 40
    check(tensors, BEST_2)


@runs_kernels
def test_of_equal_experts_the_first_are_chosen() -> None:
    tensors = inputs(3, 32, 20, 8, torch.float32)
    tensors[1].zero_()
    check(tensors, RouterSpec(3, renormalise=True))


@runs_kernels
@pytest.mark.parametrize("num_tokens", [6, 70])
@pytest.mark.parametrize("router", [BEST_2, ROUTERS["sigmoid, groups"], ROUTERS["sparsemixer"]])
def test_tokens_that_are_not_finite_leave_the_others_alone(router: RouterSpec, num_tokens: int) -> None:
    from pagewire_kernels.fused_moe import triton as kernel

    correction = torch.linspace(-1, 1, 8, device=DEVICE) if router.num_groups > 1 else None
    tensors = inputs(num_tokens, 32, 20, 8, torch.float32)
    tensors[0][2], tensors[1][2] = float("nan"), float("nan")
    out = kernel.fused_moe(*tensors, router, correction, config=SMALL)
    others = [0, 1, *range(3, num_tokens)]
    expected = reference.fused_moe(tensors[0][others], tensors[1][others], *tensors[2:], router, correction)
    torch.testing.assert_close(out[others], expected, atol=1e-5, rtol=1e-4)


@runs_kernels
def test_no_tokens_are_no_work() -> None:
    from pagewire_kernels.fused_moe import triton as kernel

    tensors = inputs(0, 32, 20, 4, torch.float32)
    assert kernel.fused_moe(*tensors, BEST_2).shape == (0, 32)


@runs_kernels
@pytest.mark.parametrize("num_pairs", [1, 2, 7, 30, 64])
def test_the_grid_covers_the_worst_routing(num_pairs: int) -> None:
    from pagewire_kernels.fused_moe.triton_route import max_blocks

    block_m, num_experts = 4, 6
    # The most blocks: one pair for each expert, all others with the first.
    counts = [num_pairs - min(num_experts, num_pairs) + 1] + [1] * (min(num_experts, num_pairs) - 1)
    assert max_blocks(num_pairs, num_experts, block_m) == sum(-(-count // block_m) for count in counts)


def test_the_reference_weighs_what_experts_yield() -> None:
    x, logits, gate_up, down = inputs(4, 16, 12, 3, torch.float32, torch.device("cpu"))
    out = fused_moe(x, logits, gate_up, down, BEST_2)
    for token in range(4):
        best = logits[token].topk(2)
        expected = torch.zeros(16)
        for weight, expert in zip(best.values.softmax(0), best.indices, strict=True):
            gate, up = (gate_up[expert] @ x[token]).chunk(2)
            expected += weight * (down[expert] @ (torch.nn.functional.silu(gate) * up))
        torch.testing.assert_close(out[token], expected)


def test_the_reference_is_gpt_oss_with_biases_and_the_clamped_gate() -> None:
    from transformers import GptOssConfig
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP

    torch.manual_seed(0)
    config = GptOssConfig(hidden_size=16, intermediate_size=12, num_local_experts=5, num_experts_per_tok=2)
    mlp = GptOssMLP(config)
    for parameter in mlp.parameters():
        torch.nn.init.normal_(parameter)
    x, experts = torch.randn(9, 16), mlp.experts
    gate_up = experts.gate_up_proj.transpose(1, 2)
    biases = (
        torch.cat([experts.gate_up_proj_bias[:, ::2], experts.gate_up_proj_bias[:, 1::2]], 1),
        experts.down_proj_bias,
    )
    with torch.no_grad():
        out = fused_moe(
            x,
            torch.nn.functional.linear(x, mlp.router.weight, mlp.router.bias),
            torch.cat([gate_up[:, ::2], gate_up[:, 1::2]], 1),
            experts.down_proj.transpose(1, 2),
            BEST_2,
            biases=biases,
            gate=ClampedSwiglu(config.swiglu_alpha, config.swiglu_limit),
        )
        expected, _ = mlp(x[None])
    torch.testing.assert_close(out, expected[0], atol=1e-4, rtol=1e-4)


def test_routers_choose_and_weigh_as_they_say() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    sigmoid = logits[0].sigmoid()

    def routed(router: RouterSpec, correction: list[float] | None = None) -> tuple[list[float], list[int]]:
        weights, experts = route(logits, router, None if correction is None else torch.tensor(correction))
        return weights[0].tolist(), experts[0].tolist()

    assert routed(RouterSpec(2, "sigmoid")) == (sigmoid[:2].tolist(), [0, 1])
    # The last expert is chosen for its correction, and weighed by its score.
    assert routed(RouterSpec(1, "sigmoid"), [0, 0, 0, 1.0]) == ([sigmoid[3].item()], [3])
    assert routed(RouterSpec(2, "sigmoid", num_groups=2), [0, 0, 1.0, 1.0])[1] == [2, 3]
    # Of a group's best expert alone, the first group is better.
    by_best = RouterSpec(2, "sigmoid", num_groups=2, group_best=1)
    assert routed(by_best, [0.5, -1.0, 0.6, 0.6])[1] == [0, 1]
    weights, experts = routed(RouterSpec(2, "sparsemixer", tolerance=0.5))
    # Of 2, 1 is within half its magnitude; of 1, no other is.
    assert experts == [0, 1]
    assert weights == pytest.approx([1 / (1 + math.exp(-1)), 1.0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RouterSpec(2, num_groups=2, top_groups=3), "3 of 2 groups"),
        (lambda: RouterSpec(2, "sparsemixer", renormalise=True), "sparsemixer"),
        (lambda: RouterSpec(2, num_groups=5).check(8), "do not make 5 groups"),
        (lambda: RouterSpec(5, num_groups=2).check(8), "5 experts cannot be chosen of 4"),
    ],
)
def test_routers_that_cannot_be_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_tiles_follow_the_rows_of_an_expert() -> None:
    few, some, many = (moe_config(90, 2, rows) for rows in (1, 40, 5000))
    assert few.block_m <= some.block_m <= many.block_m
    with pytest.raises(ValueError, match="elements of 8 bytes"):
        moe_config(90, 8, 1)


@pytest.mark.gpu
@pytest.mark.parametrize("num_tokens", [1, 64, 3000])
@pytest.mark.parametrize("shape", [(2048, 768, 128, 8), (1024, 3584, 8, 2)], ids=["qwen3", "mixtral"])
def test_real_shapes_on_the_gpu(shape: tuple[int, int, int, int], num_tokens: int) -> None:
    hidden, size, num_experts, top_k = shape
    check(inputs(num_tokens, hidden, size, num_experts, torch.bfloat16), RouterSpec(top_k, renormalise=True), None)


@pytest.mark.gpu
def test_one_captured_graph_serves_every_routing() -> None:
    tensors = inputs(16, 128, 96, 16, torch.bfloat16)
    router = RouterSpec(4, renormalise=True)
    fused_moe(*tensors, router)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = fused_moe(*tensors, router)
    for seed in range(3):
        x, logits, _, _ = inputs(16, 128, 96, 16, torch.bfloat16)
        tensors[0].copy_(x.roll(seed, 0))
        tensors[1].copy_(logits.roll(seed, 1) * (seed * 10 + 1))
        graph.replay()
        assert relative_error(out, tensors, router) <= TOLERANCES[torch.bfloat16]
