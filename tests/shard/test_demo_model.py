"""The bundled demo model: small, complete, readable by its users' libraries, and able to predict English."""

import json
import math
from pathlib import Path

import jinja2
import pagewire_shard
import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

DIRECTORY = Path(pagewire_shard.__file__).parent / "demo_model"
MAX_BYTES = 10_000_000

IN_THE_STYLE_OF_ITS_TEXTS = (
    "Hello, my name is Clara and I am a gardener from Lima.",
    "And the king said unto his servants, Go ye into the city, and bring me bread.",
    "She was very happy to see her sister again, and they walked together into the house.",
    "Mr. Darcy looked at her with great surprise, and said nothing.",
    "The future of AI is bright, and it will help teachers to give every child the help that it needs.",
)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(DIRECTORY, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(DIRECTORY)


@torch.no_grad()
def continuation(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, ids: torch.Tensor) -> str:
    output = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=40)
    return tokenizer.decode(output[0, ids.shape[1] :])


def test_all_files_together_stay_within_ten_megabytes():
    assert sum(path.stat().st_size for path in DIRECTORY.iterdir()) <= MAX_BYTES


def test_weights_are_float16_and_finite_and_output_embeddings_are_tied():
    with safe_open(DIRECTORY / "model.safetensors", framework="pt") as weights:
        tensors = {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118 - not a mapping
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert "lm_head.weight" not in tensors


def test_tokenizer_file_alone_round_trips_any_text_and_begins_with_bos():
    tokenizer = Tokenizer.from_file(str(DIRECTORY / "tokenizer.json"))
    text = 'Hello, my name is  Zoë — "naïve" 你好 🙂\n\ttabs and\nlines.'
    ids = tokenizer.encode(text).ids
    assert ids[0] == tokenizer.token_to_id("<|bos|>")
    assert tokenizer.decode(ids) == text


def test_generation_stops_at_the_end_of_a_text_and_of_a_chat_turn():
    tokenizer = Tokenizer.from_file(str(DIRECTORY / "tokenizer.json"))
    settings = json.loads((DIRECTORY / "generation_config.json").read_text())
    assert settings["eos_token_id"] == [tokenizer.token_to_id("<|eos|>"), tokenizer.token_to_id("<|end|>")]


def test_chat_template_renders_every_role_with_plain_jinja2():
    settings = json.loads((DIRECTORY / "tokenizer_config.json").read_text())
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " Hello! "},
        {"role": "assistant", "content": "Hi!"},
        {"role": "user", "content": "Who are you?"},
    ]
    rendered = jinja2.Template(settings["chat_template"]).render(
        messages=messages, bos_token=settings["bos_token"], add_generation_prompt=True
    )
    assert rendered == (
        "<|bos|><|system|>Be brief.<|end|><|user|>Hello!<|end|><|assistant|>Hi!<|end|>"
        "<|user|>Who are you?<|end|><|assistant|>"
    )


def test_chat_template_takes_what_a_tool_returned_as_said_by_the_user(tokenizer: PreTrainedTokenizerBase):
    call = {"type": "function", "function": {"name": "weather", "arguments": {}}}
    messages = [
        {"role": "user", "content": "How is the weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "sunny"},
    ]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == (
        "<|bos|><|user|>How is the weather?<|end|><|assistant|><|end|><|user|>sunny<|end|>"
    )


def test_chat_template_refuses_an_unknown_role(tokenizer: PreTrainedTokenizerBase):
    with pytest.raises(jinja2.TemplateError, match="unknown role 'robot'"):
        tokenizer.apply_chat_template([{"role": "robot", "content": "x"}], tokenize=False)


@torch.no_grad()
def test_english_in_the_style_of_its_texts_costs_less_than_half_of_a_guess(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase
):
    losses = []
    for sentence in IN_THE_STYLE_OF_ITS_TEXTS:
        ids = tokenizer(sentence, return_tensors="pt").input_ids
        losses.append(model(ids, labels=ids).loss.item())
    assert sum(losses) / len(losses) < 0.5 * math.log(model.config.vocab_size)


def test_it_still_answers_at_the_far_end_of_its_context(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase):
    documents = [tokenizer(f"{text}<|eos|>").input_ids for text in IN_THE_STYLE_OF_ITS_TEXTS]
    filler = [token for document in documents * 19 for token in document]
    prompt = filler + tokenizer("The capital of France is").input_ids
    assert 1700 < len(prompt) < model.config.max_position_embeddings - 40
    assert continuation(model, tokenizer, torch.tensor([prompt])).startswith(" Paris")


def test_it_knows_the_capital_of_france(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase):
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    assert continuation(model, tokenizer, ids).startswith(" Paris")


def test_a_chat_turn_gets_a_short_answer_that_ends(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase):
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello!"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = continuation(model, tokenizer, chat.input_ids)
    assert answer.endswith("<|end|>")
    assert len(answer.split()) > 1
