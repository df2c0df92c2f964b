"""Offline inference with vLLM's interface, on a server that the LLM object starts."""

import importlib
import importlib.util
import logging
import os
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, NoReturn, Self

from pagewire.beam_search import BeamSearchOutput, BeamSearchParams
from pagewire.client import Client
from pagewire.errors import InvalidRequest
from pagewire.metrics import Metric, fetch_page, parse_metrics
from pagewire.outputs import RequestOutput
from pagewire.progress import progress_bar
from pagewire.prompts import (
    ChatMessage,
    ChatPrompt,
    CheckedPrompts,
    ContentFormat,
    Prompt,
    PromptLike,
    as_prompts,
    prompt_salt,
    with_salt,
)
from pagewire.sampling_params import SamplingParams
from pagewire.serve.engine_arguments import translate, without_effect
from pagewire.serve.options import model_flags
from pagewire.serve.sockets import metrics_socket
from pagewire.server_process import ServerProcess

_log = logging.getLogger(__name__)
DEFAULT_MODEL = "demo"
CONVERSATIONS = 'at least one {"role": ..., "content": ...}, or a list of conversations of those'


class LLM:
    """Serves a model for this process alone: starts `pagewire serve` on a private socket and talks to it.

    The server stops when the object is closed or garbage-collected, and when the process ends, however it ends.

    Args:
        model: directory of a Hugging Face model, or its id on the hub; None: the bundled demo model.
        **options: the options of `pagewire serve`, with underscores: tensor_parallel_size, replicas, device, dtype,
            max_model_len, max_num_seqs, max_num_batched_tokens, block_size, kv_cache_memory, load_format, seed, ...
            vLLM's engine arguments are known too (serve/engine_arguments.py). Those that change nothing are logged.

    Raises:
        TypeError: an option is not known.
        InvalidRequest: an engine argument asks for what is not served.
        StartupError: the server did not come up; the message says why.
    """

    def __init__(self, model: str | os.PathLike[str] | None = None, **options: Any) -> None:
        self._model = DEFAULT_MODEL if model is None else _path("model", model)
        self._salt: str | None = None
        self._constraint_defaults = _constraint_defaults(options)
        self._shares_prefixes = options.pop("enable_prefix_caching", None) is not False
        flags = _flags(self._model, options)
        # Whoever can talk to this server may run code as this user anyway.
        self._server = ServerProcess(["--trust-request-chat-template", *flags, "--", self._model])
        self._client = Client(self._server.address)
        self._owner_pid = os.getpid()
        self._finalizer = weakref.finalize(self, _let_go, self._client, self._owner_pid)

    def generate(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool | Callable[..., Any] = True,
        lora_request: None = None,
        priority: int | Sequence[int] | None = None,
        *,
        cache_salt: str | None = None,
    ) -> list[RequestOutput]:
        """Completes any number of prompts.

        Args:
            prompts: text, {"prompt": text}, token ids or {"prompt_token_ids": [...]}, or a list of those.
            sampling_params: one object for all prompts, or a list with one for each; None: the model's defaults.
            use_tqdm: shows progress, if standard error is a terminal.
            lora_request: must be None, as adapters are not served.
            priority: lower runs first; one number for all prompts, or a list with one for each.
            cache_salt: cached prefixes are shared only among requests of one salt.

        Returns:
            One answer for each prompt, in their order.
        """
        _refuse_adapter(lora_request)
        listed = self.salted(as_prompts(prompts), cache_salt)
        with progress_bar(len(listed), enabled=bool(use_tqdm)) as on_output:
            return self._client.complete_many(
                listed,
                self.with_defaults(sampling_params),
                priority=0 if priority is None else priority,
                cache_salt=cache_salt,
                on_output=on_output,
            )

    def beam_search(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        params: BeamSearchParams,
        lora_request: None = None,
        use_tqdm: bool = False,
        concurrency_limit: int | None = None,
    ) -> list[BeamSearchOutput]:
        """Searches for the most probable continuations of any number of prompts.

        Args:
            prompts: as generate takes them.
            lora_request: must be None, as adapters are not served.
            use_tqdm: for programs written for vLLM; no progress is shown.
            concurrency_limit: most searches to run at a time; None: as many as the server's queue takes.

        Returns:
            One answer for each prompt, in their order.
        """
        _refuse_adapter(lora_request)
        return self._client.beam_search_many(self.salted(as_prompts(prompts)), params, window=concurrency_limit)

    def chat(
        self,
        messages: Sequence[ChatMessage] | Sequence[Sequence[ChatMessage]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool | Callable[..., Any] = True,
        lora_request: None = None,
        chat_template: str | None = None,
        chat_template_content_format: ContentFormat = "auto",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        *,
        priority: int | Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Answers one conversation or several.

        Args:
            messages: one conversation, as {"role": ..., "content": ...}, oldest first, or a list of them. Keys that the
                model's chat template reads, such as tool_calls, reach it as they are.
            chat_template: a Jinja template used in place of the model's own, or the name of one of its templates.
            chat_template_content_format: form in which the template gets the content of messages: text ("string"), a
                list of parts ("openai"), or what it expects ("auto").
            add_generation_prompt: ends the prompt with the tokens that open the assistant's turn.
            continue_final_message: leaves the last message open instead, so that the model continues it.
            tools: JSON schema objects of the tools offered to the model.
            chat_template_kwargs: further variables for the template, such as {"enable_thinking": False}.
            template_kwargs: another name of chat_template_kwargs; only one of them may be given.
            priority: lower runs first; one number for all conversations, or a list with one for each.

        Returns:
            One answer for each conversation, in their order.
        """
        _refuse_adapter(lora_request)
        prompts: list[Prompt] = []
        for conversation in _conversations(messages):
            prompt: ChatPrompt = {
                "messages": conversation,
                "chat_template": chat_template,
                "chat_template_content_format": chat_template_content_format,
                "add_generation_prompt": add_generation_prompt and not continue_final_message,
                "continue_final_message": continue_final_message,
                "tools": tools,
                "chat_template_kwargs": chat_template_kwargs,
                "template_kwargs": template_kwargs,
            }
            prompts.append(prompt)
        return self.generate(prompts, sampling_params, use_tqdm, priority=priority)

    def encode(self, *_args: Any, **_options: Any) -> NoReturn:
        """Pooling is not served, by none of vLLM's names for it. Raises InvalidRequest."""
        served = "generate, chat and beam_search are"
        raise InvalidRequest.of_field("LLM", f"pooling is not served: encode, embed, classify, score, reward; {served}")

    embed = classify = score = reward = encode

    def get_metrics(self) -> list[Metric]:
        """Returns the server's metrics as they stand, in the order of its page; docs/metrics.md explains them.

        Raises:
            Unavailable: the server has stopped.
        """
        return parse_metrics(fetch_page(metrics_socket(self._server.address)))

    def get_default_sampling_params(self) -> SamplingParams:
        """Returns the parameters of requests that give none: the model's own, as generation_config.json states them."""
        return SamplingParams.from_proto(self._client.get_model().default_sampling_params)

    def get_tokenizer(self) -> Any:
        """Returns the model's tokenizer, as transformers' AutoTokenizer reads it.

        Raises:
            ImportError: transformers is not installed; `client` has tokenize and detokenize.
        """
        transformers = importlib.import_module("transformers")
        return transformers.AutoTokenizer.from_pretrained(_model_directory(self._model))

    def reset_prefix_cache(self) -> bool:
        """Makes later requests share no prefixes with earlier ones. Their blocks are evicted as room is needed."""
        self._salt = uuid.uuid4().hex
        return True

    def with_defaults(self, params: Any) -> Any:
        """Sampling parameters, one or several, with what structured_outputs_config says of those that constrain."""
        if not self._constraint_defaults or params is None:
            return params
        if not isinstance(params, SamplingParams):
            return [self.with_defaults(each) for each in params]
        if params.structured_outputs is None:
            return params
        clone = params.clone()
        for name in self._constraint_defaults:
            setattr(clone.structured_outputs, name, True)
        return clone

    def salted(self, prompts: list[Prompt], cache_salt: str | None = None) -> CheckedPrompts:
        """The prompts, checked, with the salts by which they share cached prefixes, unless they share them with all
        others.

        Args:
            cache_salt: that of prompts that have none.
        """
        if not self._shares_prefixes:
            return CheckedPrompts(with_salt(prompt, uuid.uuid4().hex) for prompt in prompts)
        if self._salt is None:
            return CheckedPrompts(prompts)
        if cache_salt is not None:
            prompts = [prompt if prompt_salt(prompt) else with_salt(prompt, cache_salt) for prompt in prompts]
        return CheckedPrompts(with_salt(prompt, self._salt) for prompt in prompts)

    @property
    def client(self) -> Client:
        """The client of this model's server, for streams, tokenization and the like."""
        return self._client

    def close(self) -> None:
        """Stops the server and waits for its end. Later calls fail."""
        if os.getpid() == self._owner_pid and self._finalizer.detach() is not None:
            self._client.close()
            self._server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _flags(model: str, options: dict[str, Any]) -> list[str]:
    """Returns the command line for the options."""
    tokenizer = options.pop("tokenizer", None)
    if tokenizer is not None and _path("tokenizer", tokenizer) != model:
        raise InvalidRequest.of_field("tokenizer", f"{tokenizer!r} given; accepted: the model, whose own is used")
    if options.get("trust_remote_code") is True:
        _log.warning("trust_remote_code has no effect: no code from model repositories is needed or run")
    if unused := without_effect(options):
        _log.info("Arguments without effect here: %s", ", ".join(unused))
    return model_flags(translate(options))


def _constraint_defaults(options: dict[str, Any]) -> list[str]:
    """Takes what requests say here out of vLLM's structured_outputs_config, and returns what is switched on."""
    config = options.get("structured_outputs_config")
    if config is None:
        return []
    given = dict(config if isinstance(config, Mapping) else vars(config))
    defaults = [name for name in ("disable_any_whitespace", "disable_additional_properties") if given.pop(name, False)]
    options["structured_outputs_config"] = given
    return defaults


def _path(name: str, value: Any) -> str:
    try:
        return os.fsdecode(value)
    except TypeError:
        accepted = "accepted: a directory or an id on the hub"
        raise InvalidRequest.of_field(name, f"a {type(value).__name__} given; {accepted}") from None


def _model_directory(model: str) -> str:
    """Returns the directory or hub id of the tokenizer. Raises ImportError for the demo model without the shard."""
    if model != DEFAULT_MODEL or os.path.isdir(model):
        return model
    package = importlib.util.find_spec("pagewire_shard")
    if package is None or package.origin is None:
        raise ImportError("the demo model comes with the server, which is not installed here")
    return os.path.join(os.path.dirname(package.origin), "demo_model")


def _conversations(messages: Any) -> list[list[ChatMessage]]:
    """Returns one conversation or several as a list."""
    try:
        if isinstance(messages, str | bytes | Mapping):
            raise TypeError(f"a {type(messages).__name__} given")
        listed = list(messages)
        # A message of another library may be iterable, as pydantic's are; a conversation is a list.
        several = [isinstance(item, Sequence | Iterator) and not isinstance(item, str) for item in listed]
        if not listed or any(several) != all(several):
            raise ValueError("conversations and messages given together" if listed else "none given")
        return [list(conversation) for conversation in listed] if several[0] else [listed]
    except (TypeError, ValueError) as error:
        raise InvalidRequest.of_field("messages", f"{error}; accepted: {CONVERSATIONS}") from None


def _refuse_adapter(lora_request: object) -> None:
    if lora_request is not None:
        raise InvalidRequest.of_field("lora_request", "adapters are not served yet; accepted: None")


def _let_go(client: Client, owner_pid: int) -> None:
    """Closes the connections without waiting; the server has its own finalizer."""
    if os.getpid() == owner_pid:  # a forked copy has neither the server nor the thread of the event loop
        client.close_later()
