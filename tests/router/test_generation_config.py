"""A model's generation_config.json: the defaults of parameters that a request leaves out."""

import json
import logging

import pytest
from pagewire.v1 import inference_pb2
from pagewire_router.admission.generation_config import model_defaults, served_digest

PARAMS = inference_pb2.SamplingParams
FIELDS = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.1, "max_new_tokens": 3, "min_p": 0.05}


def files_of(fields: object) -> dict[str, bytes]:
    return {"generation_config.json": json.dumps(fields).encode()}


def test_the_fields_that_vllm_reads_are_read() -> None:
    assert model_defaults(files_of(FIELDS | {"eos_token_id": 1, "do_sample": True, "bos_token_id": None})) == PARAMS(
        temperature=0.6, top_k=20, top_p=0.95, repetition_penalty=1.1, max_tokens=3, min_p=0.05
    )
    assert model_defaults(files_of({"temperature": 0, "top_k": None})) == PARAMS(temperature=0.0)


def test_what_equals_the_default_is_no_default_of_the_model() -> None:
    assert model_defaults(files_of({"temperature": 1.0, "top_p": 1, "top_k": 0})) == PARAMS()


@pytest.mark.parametrize(
    "fields",
    [{"temperature": 2.5}, {"top_p": 0}, {"top_k": 1.5}, {"top_k": "20"}, {"min_p": True}, {"max_new_tokens": 0}, [1]],
    ids=str,
)
def test_what_is_out_of_range_is_logged_and_ignored(fields: object, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert model_defaults(files_of(fields)) == PARAMS()
    assert "ignored" in caplog.text
    assert model_defaults({}) == PARAMS()


def test_a_file_that_is_no_json_is_ignored(caplog: pytest.LogCaptureFixture) -> None:
    assert model_defaults({"generation_config.json": b"\xff{"}) == PARAMS()
    assert "ignored" in caplog.text


async def params_of(router, **fields) -> inference_pb2.SamplingParams:
    """The parameters that a request runs with."""
    given = PARAMS(**fields) if fields else None
    await router.generate(text="x", sampling_params=given)
    return router.runner.requests[-1].params


async def test_what_is_given_wins_over_the_models_defaults(serve, byte_level_files) -> None:
    files = {**byte_level_files, **files_of(FIELDS)}
    async with serve(files=files) as router:
        absent = await params_of(router)
        assert [round(absent.temperature, 3), absent.top_k, absent.max_tokens] == [0.6, 20, 3]
        given = await params_of(router, temperature=1.0, top_k=-1, max_tokens=2, repetition_penalty=1.0)
        assert [given.temperature, given.top_k, given.max_tokens, given.repetition_penalty] == [1.0, 0, 2, 1.0]
        assert round(given.top_p, 3) == 0.95
        model = await router.stub.GetModel(inference_pb2.GetModelRequest())
        assert model.default_sampling_params == model_defaults(files)


async def test_vllms_defaults_may_be_asked_for(serve, byte_level_files) -> None:
    files = {**byte_level_files, **files_of(FIELDS)}
    async with serve(files=files, config={"generation_config": "vllm"}) as router:
        params = await params_of(router)
        assert [params.temperature, params.top_k, params.top_p, params.max_tokens] == [1.0, 0, 1.0, 16]
        model = await router.stub.GetModel(inference_pb2.GetModelRequest())
        assert not model.default_sampling_params.ListFields()


def test_the_digest_that_clients_get_tells_other_defaults_apart() -> None:
    """A stream is not resumed where absent parameters mean something else."""
    digests = [
        served_digest(b"model", model_defaults(files_of(fields)))
        for fields in ({}, {"temperature": 1.0}, {"temperature": 0.6}, {"temperature": 0.7}, {"temperature": 0.6})
    ]
    assert digests[0] == digests[1] == b"model"
    assert digests[2] == digests[4]
    assert len(set(digests)) == 3
