"""The shard process's configuration: built once by the CLI, never changed."""

from dataclasses import dataclass, field
from typing import Any, Literal

Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
LoadFormat = Literal["auto", "safetensors", "dummy"]


@dataclass(frozen=True, slots=True)
class ShardConfig:
    """Everything a shard needs to know; derived values are properties of the parts that need them."""

    model: str
    """Directory of a Hugging Face model, or its id on the hub."""
    model_name: str
    """The name clients see."""
    listen: str = "127.0.0.1:0"
    """Address to serve on: host:port, or unix:PATH."""
    metrics_port: int | None = None
    """Port of /metrics, /healthz and /readyz; None: not served; 0: any free port."""
    health_port: int | None = None
    """Port of a plaintext grpc.health.v1, on the host of `listen`; None: on `listen` alone; 0: any free port."""
    tls_cert: str | None = None
    """PEM file of the certificate that routers are shown, with its chain; read again when it changes. None: no TLS."""
    tls_key: str | None = None
    """PEM file of its private key."""
    tls_client_ca: str | None = None
    """PEM file of the authorities of which routers must show a certificate; None: they need none."""
    group_id: str = "0"
    """Shards of one group share it."""
    tp_rank: int = 0
    """Tensor-parallel rank, from 0."""
    tp_size: int = 1
    """Tensor-parallel size."""
    pp_rank: int = 0
    """Pipeline stage, from 0."""
    pp_size: int = 1
    """Pipeline stages."""
    enable_expert_parallel: bool = False
    """Each rank has some of a mixture's experts, in place of a part of every expert."""
    rendezvous: str | None = None
    """Where the ranks of a group meet: HOST:PORT or unix:PATH of rank 0; None: there is one rank."""
    rendezvous_timeout_s: float = 600.0
    """How long a rank waits for the others to come: their pods may start at different times."""
    group_watch_s: float = 2.5
    """How long a rank that has loaded may be silent before the others take it for lost."""
    device: Device = "auto"
    """Where to run; auto: cuda if there is one."""
    dtype: Dtype = "auto"
    """Element type of weights; auto: the checkpoint's. resolve_precision says what a CPU makes of it."""
    max_model_len: int | None = None
    """Longest sequence in tokens; None: the model's own, or what the block pool holds if that is less."""
    max_num_seqs: int | None = None
    """Sequences the shard can hold; None: chosen from the device and the model (limits.py)."""
    max_num_batched_tokens: int | None = None
    """Tokens a plan may compute; None: chosen from the device and the model (limits.py)."""
    block_size: int | None = None
    """Tokens in a block of the KV cache; None: 64 on a GPU, 16 on a CPU."""
    kv_cache_memory_bytes: int | None = None
    """Size of the block pool; None: measured on a GPU, a share of memory on a CPU."""
    gpu_memory_utilization: float = 0.9
    """Share of the GPU's memory that weights, activations and pool may take together."""
    cuda_graphs: bool = True
    """Capture the steps of a GPU at start; False: run them operation after operation."""
    load_format: LoadFormat = "auto"
    """auto: safetensors, or PyTorch files where there are none; safetensors: those alone; dummy: random weights."""
    seed: int = 0
    """Seeds dummy weights."""
    hf_overrides: dict[str, Any] = field(default_factory=dict)
    """Fields that replace those of the model's config.json; objects are merged."""
    cpu_threads: int | None = None
    """Threads for CPU kernels; None: all cores, less one for the router when the model is small."""
    logits_processors: tuple[str, ...] = ()
    """Logits processors to run, as MODULE:CLASS or FILE.py:CLASS."""
    structured_outputs: bool = True
    """Serve grammars, which takes some 10 us a token of the vocabulary at start."""
    grammar_compile_timeout_s: float = 2.0
    """Longest time for compiling a grammar."""
    grammar_compile_memory_bytes: int = 512 << 20
    """Most memory for compiling a grammar."""
    grammar_cache_memory_bytes: int = 512 << 20
    """Most memory of all compiled grammars: those in use, and those that are kept for later requests."""
    coerce_one_of: bool = False
    """Read `oneOf` of JSON schemas as `anyOf` where its options cannot be told apart."""
    lenient_json_schemas: bool = False
    """Ignore keywords and formats of JSON schemas that are not supported, in place of refusing them."""
    lease_term_s: float = 3.0
    """A router that is silent for so long loses the shard."""
    drain_grace_s: float = 30.0
    """How long a shard that was told to stop waits for its router to let go."""
    trace_exporters: tuple[str, ...] = ()
    """Names of the OpenTelemetry exporters that traces go to; empty: no tracing. The SDK reads the rest of OTEL_*."""
    stall_timeout_s: float = 60.0
    """Work that waits for so long without any progress makes the shard not alive: it is best started again."""
    flight_recorder: str | None = None
    """File that the last plans and results are written to; None: they are not kept."""
    flight_recorder_bytes: int = 64 << 20
    """Most of a disk that it takes, with the file before it."""
    exit_with_parent: bool = False
    """Stop when standard input ends: the parent process is gone."""

    @property
    def group_size(self) -> int:
        """Ranks of the group."""
        return self.tp_size * self.pp_size
