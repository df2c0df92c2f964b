"""The search alone, on a model whose every beam is computed anew: what transformers' generate finds."""

import pytest
import torch
import transformers
from beam_reference import Search, check_equal, search
from pagewire.v1 import inference_pb2
from pagewire_router.beams.search import BeamSearch, BeamSettings, Continuation

VOCAB_SIZE = 130
PROMPT = [3, 1, 4, 1, 5]


@pytest.fixture(scope="module")
def model() -> transformers.PreTrainedModel:
    torch.manual_seed(5)
    config = transformers.GPT2Config(vocab_size=VOCAB_SIZE, n_positions=64, n_embd=16, n_layer=1, n_head=2)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * 0.3
    return model


def run(model: transformers.PreTrainedModel, wanted: Search) -> BeamSearch:
    """Scores all beams with one pass over their whole sequences for each step."""
    beams = BeamSearch(wanted.settings(VOCAB_SIZE))
    while not beams.is_done:
        outputs = [beam.token_ids() for beam in beams.beams]
        with torch.no_grad():
            logprobs = model(torch.tensor([PROMPT + tokens for tokens in outputs])).logits[:, -1].log_softmax(-1)
        if len(outputs[0]) < wanted.min_new_tokens:
            logprobs[:, list(wanted.eos_token_ids)] = -torch.inf
        values, ids = logprobs.topk(beams.settings.num_scores)
        scores = [
            ([i for i, v in zip(row_ids, row, strict=True) if v > -torch.inf], [v for v in row if v > -torch.inf])
            for row_ids, row in zip(ids.tolist(), values.tolist(), strict=True)
        ]
        beams.advance(scores)
    return beams


EOS = {"no eos": (), "one eos": (7,), "many eos": tuple(range(0, 120, 9))}


@pytest.mark.parametrize("eos", EOS)
@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("width", [1, 2, 5])
def test_it_finds_what_transformers_finds(
    model: transformers.PreTrainedModel, width: int, early_stopping: bool | str, eos: str
) -> None:
    for length_penalty, min_new_tokens in ((-1.0, 0), (0.0, 3), (1.0, 0), (2.0, 3)):
        wanted = Search(
            width,
            max_new_tokens=8,
            num_return_sequences=width,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
            min_new_tokens=min_new_tokens,
            eos_token_ids=EOS[eos],
        )
        check_equal(run(model, wanted).hypotheses, search(model, PROMPT, wanted), wanted)


def settings(**values: object) -> BeamSettings:
    return BeamSettings(**{"width": 2, "n": 2, "max_tokens": 3, "num_scores": 3, **values})


def test_equally_good_continuations_come_in_the_order_of_beams_then_of_tokens() -> None:
    beams = BeamSearch(settings())
    assert beams.advance([([5, 3, 4], [-1.0, -1.0, -1.0])]) == [Continuation(0, 3), Continuation(0, 4)]
    assert beams.advance([([9, 1], [-2.0, -2.0]), ([0], [-2.0])]) == [Continuation(0, 1), Continuation(0, 9)]


def test_beams_without_continuations_end_and_fewer_hypotheses_are_found() -> None:
    """As when a grammar allows one output alone."""
    beams = BeamSearch(settings(stop_token_ids=frozenset({0})))
    assert beams.advance([([4], [-1.0])]) == [Continuation(0, 4)]
    assert not beams.is_done
    assert beams.advance([([0], [-0.5])]) == []
    assert beams.is_done
    assert [(h.beam.token_ids(), h.beam.cumulative_logprob, h.score) for h in beams.hypotheses] == [
        ([4, 0], -1.5, -0.75)
    ]


def test_a_stop_token_outside_the_first_width_is_no_hypothesis() -> None:
    beams = BeamSearch(settings(width=1, stop_token_ids=frozenset({0})))
    assert beams.advance([([4, 0], [-1.0, -1.1])]) == [Continuation(0, 4)]
    assert beams.hypotheses == []


@pytest.mark.parametrize(
    ("early_stopping", "is_done"),
    [
        (inference_pb2.EARLY_STOPPING_TRUE, True),
        (inference_pb2.EARLY_STOPPING_FALSE, False),
        (inference_pb2.EARLY_STOPPING_NEVER, False),
    ],
)
def test_a_running_beam_that_is_better_keeps_the_search_going_unless_it_stops_early(
    early_stopping: "inference_pb2.EarlyStopping.ValueType", is_done: bool
) -> None:
    beams = BeamSearch(settings(max_tokens=9, stop_token_ids=frozenset({0, 1}), early_stopping=early_stopping))
    beams.advance([([0, 4, 5], [-3.0, -3.1, -3.2])])
    beams.advance([([0, 6], [-0.1, -0.2]), ([7], [-9.0])])
    assert len(beams.hypotheses) == 2
    assert beams.is_done == is_done
