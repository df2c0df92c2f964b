"""The configuration of `pagewire serve`: built once by the CLI, never changed."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """What to serve and where. None leaves the choice to the shard."""

    model: str = "demo"
    """Directory of a Hugging Face model, its id on the hub, or "demo": the bundled model."""
    served_model_name: str | None = None
    """The name that clients see and that requests may give; None: as `model`."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 50051
    """Port to listen on; 0: any free port."""
    uds: str | None = None
    """Path of a Unix socket to listen on, in place of host and port."""
    private_socket: bool = False
    """Listen on a Unix socket in a directory that only this user can enter; it is removed with the server."""
    http_port: int | None = 8000
    """Port of the HTTP front; None: not served; 0: any free port."""
    http_max_body_bytes: int | None = None
    """Largest body of a request over HTTP; None: the router decides."""
    http_max_connections: int | None = None
    """Connections to the HTTP front; None: the router decides."""
    http_page: bool = True
    """Serve a page to try the model on at / over HTTP."""
    http_cors_origins: tuple[str, ...] = ()
    """Origins whose pages may call over HTTP from a browser; "*" is all."""
    metrics_port: int | None = 9400
    """Port of /metrics, /healthz and /readyz; None: not served; 0: any free port."""
    health_port: int | None = None
    """Port of gRPC health in plaintext; None: only where requests are served; 0: any free port."""
    tls_cert: str | None = None
    """PEM file of the certificate chain that clients are shown; None: no TLS."""
    tls_key: str | None = None
    """PEM file of its private key."""
    tls_client_ca: str | None = None
    """PEM file of the authorities that must have signed a client's certificate; None: clients need none."""
    api_keys: str | None = None
    """File of the keys that calls may carry, one on each line."""
    jwt_jwks: str | None = None
    """File of the public keys (JWKS) of tokens that calls may carry."""
    jwt_issuer: str | None = None
    """Issuer that tokens must have."""
    jwt_audience: str | None = None
    """Audience that tokens must be for."""
    client_limits: str | None = None
    """File of the limits of single clients, in TOML."""
    trust_request_chat_template: bool = False
    """Take chat templates from clients."""
    generation_config: str | None = None
    """auto or vllm: where the defaults of sampling parameters come from; None: the router decides."""
    max_logprobs: int | None = None
    """Most log-probabilities for each token, -1: of the whole vocabulary; None: the router decides."""
    tool_call_parser: str | None = None
    """Format of the model's tool calls; None: as the model's files say."""
    reasoning_parser: str | None = None
    """Format of its reasoning; None: as the model's files say."""
    max_request_time_s: float | None = None
    """Longest that a request may take; None: no limit."""
    step_timeout_s: float | None = None
    """How long a shard group may make no progress before its requests are moved; None: the router decides."""
    shard_wait_s: float | None = None
    """How long requests wait for shards that have gone; None: the router decides."""
    tensor_parallel_size: int = 1
    """Shards that share each layer of a replica."""
    pipeline_parallel_size: int = 1
    """Stages that a replica's layers are parted into."""
    enable_expert_parallel: bool = False
    """Whether each shard of a replica has some of a mixture's experts, in place of a part of every expert."""
    replicas: int = 1
    """Number of shard groups; each holds the whole model."""
    device: str = "auto"
    """auto, cpu or cuda."""
    gpus: tuple[str, ...] = ()
    """GPUs to distribute among the shards, named as in CUDA_VISIBLE_DEVICES; one or none: shards see what is there."""
    dtype: str = "auto"
    """Element type of weights: auto, float32, bfloat16 or float16."""
    max_model_len: int | None = None
    """Longest prompt plus output, in tokens."""
    max_num_seqs: int | None = None
    """Sequences a shard can hold."""
    max_num_batched_tokens: int | None = None
    """Tokens a step may compute."""
    block_size: int | None = None
    """Tokens in a block of the KV cache."""
    kv_cache_memory_bytes: int | None = None
    """Size of a shard's block pool."""
    gpu_memory_utilization: float | None = None
    """Share of a GPU's memory to use."""
    cuda_graphs: bool = True
    """Whether a GPU's decode steps are captured as graphs."""
    load_format: str = "auto"
    """auto: safetensors, or PyTorch files where there are none; safetensors: those alone; dummy: random weights."""
    seed: int = 0
    """Seeds dummy weights."""
    hf_overrides: str | None = None
    """Fields that replace those of the model's config.json, as a JSON object."""
    cpu_threads: int | None = None
    """Threads for a shard's CPU kernels."""
    logits_processors: str | None = None
    """Logits processors that shards run, separated by commas: MODULE:CLASS or FILE.py:CLASS."""
    structured_outputs: bool = True
    """Whether shards serve grammars."""
    grammar_compile_timeout_s: float | None = None
    """Longest time for compiling a grammar."""
    grammar_compile_memory_bytes: int | None = None
    """Most memory for that."""
    grammar_cache_memory_bytes: int | None = None
    """Most memory of all compiled grammars of a shard."""
    coerce_one_of: bool = False
    """Read oneOf of JSON schemas as anyOf where its options cannot be told apart."""
    lenient_json_schemas: bool = False
    """Ignore keywords and formats of JSON schemas that are not supported."""
    drain_grace_s: float = 30.0
    """How long requests may go on after SIGTERM."""
    spare_shards: bool = True
    """Keep processes that have imported everything, to replace a shard that is lost."""
    flight_recorder: str | None = None
    """Directory where each shard keeps its last plans and results; None: they are not kept."""
    exit_with_parent: bool = False
    """Stop when standard input ends: the parent process is gone."""

    @property
    def group_size(self) -> int:
        """Shards in each replica."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    @property
    def listen(self) -> str:
        """The router's address, unless the socket is private."""
        if self.uds is not None:
            return f"unix:{self.uds}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
