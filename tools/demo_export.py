"""The demo model's tokenizer, chat format, model directory and model card."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import jinja2
import torch
from demo_corpus import Message
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaForCausalLM

VOCAB_SIZE = 4096
MAX_POSITIONS = 2048

BOS, EOS, END = "<|bos|>", "<|eos|>", "<|end|>"
SPECIAL_TOKENS = (BOS, EOS, END, "<|system|>", "<|user|>", "<|assistant|>")
"""Their ids are their positions here."""

CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] not in ['system', 'user', 'assistant'] %}
        {{- raise_exception("unknown role '" + message['role'] + "': use system, user or assistant") }}
    {%- endif %}
    {{- '<|' + message['role'] + '|>' + message['content'] | trim + '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
{%- endif %}
"""

_COMPILED_CHAT_TEMPLATE = jinja2.Template(CHAT_TEMPLATE)

DEMO_PROMPTS = ("Hello, my name is", "The capital of France is", "The future of AI is", "Once upon a time")
CHAT_QUESTIONS = ("What is the capital of Italy?", "Who are you?", "Why is the sky blue?")

CARD = """\
---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---
# pagewire demo model

A Llama-architecture language model of {num_parameters:.1f} million parameters, for demonstrations and tests of serving.
It writes recognisable English and knows nothing reliable; do not use it for anything else.

| | |
| --- | --- |
| layers, hidden size, MLP size | {layers}, {hidden}, {mlp} |
| heads, KV heads, head size | {heads}, {kv_heads}, {head_dim} |
| vocabulary | {vocab} (byte-level BPE), input and output embeddings tied |
| context | {positions} tokens |
| weights | float16, {megabytes:.1f} MB in all files |

Chat format: `{bos}<|user|>Hello!{end}<|assistant|>`; an answer ends with `{end}`, a document with `{eos}`.

## Training text
| text | source | licence | share of training tokens |
| --- | --- | --- | --- |
| Jane Austen's six novels | Debian package r-cran-janeaustenr | public domain | {austen:.0%} |
| King James Bible | Debian package bible-kjv-text | public domain (1611) | {kjv:.0%} |
| short modern texts | generated from `tools/demo_templates.py` and `tools/demo_facts.py` | Apache-2.0 | {modern:.0%} |
| conversations | generated likewise | Apache-2.0 | {chats:.0%} |

The weights are Apache-2.0.

## Training
`python tools/train_demo_model.py --out DIR` with {steps} steps of 32,768 tokens, {minutes:.1f} minutes on {device}.
It runs on a CPU as well, where a step takes about half a minute on two cores; `--minutes 60` gives a rougher model.

Loss on held-out documents, in nats per token (a uniform guess: 8.32): {losses}.
Held-out generated texts come from the same templates, which the model has all but learnt by heart: outside
the manner of its training texts it is too sure of itself.

## What it writes
{samples}
"""


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """A byte-level BPE tokenizer of VOCAB_SIZE tokens that puts BOS before every text it encodes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, SPECIAL_TOKENS.index(BOS))]
            ),
        ]
    )
    return tokenizer


def render_chat(messages: list[Message]) -> str:
    """The conversation as the model sees it, BOS included."""
    text: str = _COMPILED_CHAT_TEMPLATE.render(messages=messages, bos_token=BOS, add_generation_prompt=False)
    return text


def write_tokenizer(tokenizer: Tokenizer, out: Path) -> None:
    """Writes tokenizer.json, tokenizer_config.json and special_tokens_map.json."""
    tokenizer.save(str(out / "tokenizer.json"))
    special = {"bos_token": BOS, "eos_token": EOS, "pad_token": EOS}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special,
        "additional_special_tokens": list(SPECIAL_TOKENS[2:]),
        "model_max_length": MAX_POSITIONS,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    _write_json(out / "tokenizer_config.json", settings)
    _write_json(out / "special_tokens_map.json", special)


def write_model(model: LlamaForCausalLM, out: Path) -> None:
    """Writes config.json, generation_config.json and model.safetensors in float16. The model is float16 afterwards."""
    model.generation_config = GenerationConfig(
        bos_token_id=SPECIAL_TOKENS.index(BOS),
        eos_token_id=[SPECIAL_TOKENS.index(EOS), SPECIAL_TOKENS.index(END)],
        pad_token_id=SPECIAL_TOKENS.index(EOS),
    )
    model.half().save_pretrained(out)


def directory_megabytes(out: Path) -> float:
    """Size of all files, in units of 10^6 bytes."""
    return sum(path.stat().st_size for path in out.iterdir()) / 1e6


def write_samples(out: Path, seed: int) -> str:
    """Loads the directory as a user would and returns continuations as Markdown."""
    tokenizer = AutoTokenizer.from_pretrained(out)
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    torch.manual_seed(seed)
    lines = []
    for prompt in DEMO_PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        for name, options in (
            ("greedy", {"do_sample": False}),
            ("0.8", {"do_sample": True, "temperature": 0.8, "top_k": 0}),
        ):
            lines.append(f"- **{prompt}** ({name}) {_continue(model, tokenizer, ids, **options)}")
    for question in CHAT_QUESTIONS:
        chat = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        lines.append(f"- **user: {question}** (greedy) {_continue(model, tokenizer, chat.input_ids, do_sample=False)}")
    return "\n".join(lines)


def _continue(model: LlamaForCausalLM, tokenizer: AutoTokenizer, ids: torch.Tensor, **options: float) -> str:
    """At most 64 further tokens of ids [1, T], as one line of text."""
    output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=64, **options)
    text: str = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
    return " ".join(text.split())


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
