"""The gated delta rule on a CPU and its reference, against transformers' and float64."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from delta_batches import delta_inputs, expected
from pagewire_kernels.gated_delta_net import DeltaInputs, cpu, gated_delta_net, reference
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextRMSNormGated, torch_recurrent_gated_delta_rule

SHAPES = [(1, 1, 16, 16), (2, 2, 16, 32), (3, 1, 24, 40), (1, 3, 7, 5), (2, 2, 128, 128), (1, 1, 96, 192)]
"""num_key_heads, group_size, key_dim, value_dim."""


def of_transformers(inputs: DeltaInputs) -> torch.Tensor:
    """What transformers computes for sequences that begin here, in float64."""
    outs = []
    norm = Qwen3NextRMSNormGated(inputs.value_dim, eps=inputs.eps)
    norm.weight.data = inputs.norm_weight.double()
    decay = -inputs.a_log.double().exp() * F.softplus(inputs.decay_logits.double() + inputs.dt_bias.double())
    beta = inputs.beta_scale * torch.sigmoid(inputs.beta_logits.double())
    starts = inputs.query_start_loc.tolist()
    for begin, end in pairwise(starts):
        parts = (each[None, begin:end] for each in (inputs.query, inputs.key, inputs.value, decay, beta))
        out, _ = torch_recurrent_gated_delta_rule(*parts, use_qk_l2norm_in_kernel=True)
        outs.append(norm(out[0].double(), inputs.gate[begin:end].double()))
    return torch.cat(outs)


@pytest.mark.parametrize("beta_scale", [1.0, 2.0])
def test_the_reference_computes_what_transformers_computes(beta_scale: float) -> None:
    inputs = delta_inputs([3, 1, 20], 2, 3, 16, 24, beta_scale=beta_scale, fresh=True)
    torch.testing.assert_close(reference.gated_delta_net(inputs), of_transformers(inputs).float(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("in_place", [False, True])
def test_the_cpu_computes_what_the_reference_computes(
    shape: tuple[int, int, int, int], in_place: bool, poisoned_memory: None
) -> None:
    inputs = delta_inputs([1, 9, 0, 1, 70], *shape, in_place=in_place)
    out, state = expected(inputs)
    found = gated_delta_net(inputs)
    torch.testing.assert_close(found.double(), out, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(inputs.state.double(), state, atol=2e-5, rtol=2e-5, equal_nan=True)


def test_keys_that_repeat_and_hardly_decay() -> None:
    inputs = delta_inputs([300], same_keys=True, beta_scale=2.0)
    out, _ = expected(inputs)
    torch.testing.assert_close(gated_delta_net(inputs).double(), out, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("cuts", [[40], [1, 1, 38], [7, 33], [39, 1]])
def test_bits_do_not_depend_on_chunks_or_company(cuts: list[int]) -> None:
    """A prompt in pieces, each beside another sequence, has the bits of the whole prompt alone."""
    whole = delta_inputs([40], 1, 2, 16, 24, fresh=True)
    expected_out = gated_delta_net(whole)
    state = torch.full((3, *whole.state.shape[1:]), torch.nan)
    begin = 0
    for number, length in enumerate(cuts):
        piece = {
            name: torch.cat((getattr(whole, name)[:5], getattr(whole, name)[begin : begin + length]))
            for name in ("query", "key", "value", "gate", "beta_logits", "decay_logits")
        }
        read = number % 2 if number else -1
        inputs = replace(
            whole,
            **piece,
            state=state,
            read_slots=torch.tensor([-1, read], dtype=torch.int32),
            write_slots=torch.tensor([2, (number + 1) % 2], dtype=torch.int32),
            query_start_loc=torch.tensor([0, 5, 5 + length], dtype=torch.int32),
            max_query_len=40,
        )
        out = gated_delta_net(inputs)
        assert torch.equal(out[:5], expected_out[:5])
        assert torch.equal(out[5:], expected_out[begin : begin + length])
        begin += length
    assert torch.equal(state[len(cuts) % 2], whole.state[int(whole.write_slots[0])])


def test_what_no_kernel_takes_is_refused() -> None:
    inputs = delta_inputs([2])
    for wrong in (
        {"value": inputs.value[:, :3]},
        {"query": inputs.query.transpose(1, 2).contiguous().transpose(1, 2)},
        {"norm_weight": inputs.norm_weight.double()},
        {"beta_logits": inputs.beta_logits.double()},
        {"state": inputs.state.transpose(2, 3).contiguous().transpose(2, 3)},
    ):
        with pytest.raises(ValueError, match=r"must|norm_weight|divide"):
            gated_delta_net(replace(inputs, **wrong))
    with pytest.raises(ValueError, match="int32"):
        cpu.gated_delta_net(replace(inputs, read_slots=inputs.read_slots.long()))
