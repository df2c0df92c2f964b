"""Names of the attributes of spans: OpenTelemetry's semantic conventions, and our own beside them.

RPC and HTTP: semantic-conventions 1.44 (RPC is a release candidate). GenAI: semantic-conventions-genai, client
inference (development).
"""

RPC_SYSTEM_NAME = "rpc.system.name"
RPC_METHOD = "rpc.method"
RPC_RESPONSE_STATUS_CODE = "rpc.response.status_code"
HTTP_REQUEST_METHOD = "http.request.method"
HTTP_ROUTE = "http.route"
HTTP_RESPONSE_STATUS_CODE = "http.response.status_code"
SERVER_ADDRESS = "server.address"
SERVER_PORT = "server.port"
CLIENT_ADDRESS = "client.address"
CLIENT_PORT = "client.port"
ERROR_TYPE = "error.type"

SERVER_ERRORS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
"""gRPC statuses that are errors of a server span; the others are the client's business."""

OPERATION_NAME = "gen_ai.operation.name"
PROVIDER_NAME = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
REQUEST_MAX_TOKENS = "gen_ai.request.max_tokens"
REQUEST_TEMPERATURE = "gen_ai.request.temperature"
REQUEST_TOP_P = "gen_ai.request.top_p"
REQUEST_TOP_K = "gen_ai.request.top_k"
REQUEST_FREQUENCY_PENALTY = "gen_ai.request.frequency_penalty"
REQUEST_PRESENCE_PENALTY = "gen_ai.request.presence_penalty"
REQUEST_SEED = "gen_ai.request.seed"
REQUEST_CHOICE_COUNT = "gen_ai.request.choice.count"
REQUEST_STREAM = "gen_ai.request.stream"
RESPONSE_ID = "gen_ai.response.id"
RESPONSE_MODEL = "gen_ai.response.model"
RESPONSE_FINISH_REASONS = "gen_ai.response.finish_reasons"
RESPONSE_TIME_TO_FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"
USAGE_INPUT_TOKENS = "gen_ai.usage.input_tokens"
USAGE_OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
USAGE_CACHE_READ_INPUT_TOKENS = "gen_ai.usage.cache_read.input_tokens"

# Of the process.
GROUP_ID = "pagewire.group.id"
TP_RANK = "pagewire.tp.rank"

# Of a request and its sequences.
PRIORITY = "pagewire.request.priority"
NUM_STOP_STRINGS = "pagewire.request.stop_strings"
"""Number of stop strings; the strings themselves are content, which spans do not carry."""
SEQUENCE_INDEX = "pagewire.sequence.index"
SEQ_ID = "pagewire.sequence.id"
QUEUE_REASON = "pagewire.queue.reason"
NUM_TOKENS = "pagewire.tokens.count"
"""How many tokens the span or event is about."""
NUM_COMPUTED_TOKENS = "pagewire.tokens.computed"
NUM_CACHED_TOKENS = "pagewire.tokens.cached"

# Of steps.
STEP = "pagewire.step.number"
FIRST_STEP = "pagewire.step.first"
"""The step that admitted the sequence."""
LAST_STEP = "pagewire.step.last"
"""The last step before the sequence was released."""
NUM_SEQUENCES = "pagewire.step.sequences"
"""Sequences that the step ran, traced or not."""
NUM_STEP_TOKENS = "pagewire.step.tokens"
"""Tokens that the step was to compute at most, for all of them."""
QUEUE_S = "pagewire.step.queue.duration"
PREPARE_S = "pagewire.step.prepare.duration"
FORWARD_S = "pagewire.step.forward.duration"
SAMPLE_S = "pagewire.step.sample.duration"
