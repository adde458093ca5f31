"""Requests of OpenAI's chat, completion and embedding endpoints.

A field that is not known is refused by name, as OpenAI does, so that a misspelt setting is not silently ignored.
Fields that change nothing here (accounting, storage) are accepted, since clients send them.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Name = Annotated[str, StringConstraints(max_length=200)]
JSON = dict[str, Any]
StopString = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Stops = StopString | Annotated[list[StopString], Field(max_length=16)]
TokenBias = dict[
    Annotated[str, StringConstraints(pattern=r"^[0-9]{1,7}$")], Annotated[float, Field(ge=-100, le=100)]
]


class Strict(BaseModel):
    """Refuses unknown fields, infinities and NaN."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())


class TextPart(Strict):
    """A piece of text in a message."""

    type: Literal["text", "input_text", "output_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: Any = None


class FunctionCall(Strict):
    """Name and arguments (JSON text) of a call."""

    name: Name
    arguments: str = "{}"


class ToolCall(Strict):
    """A call that the assistant made earlier in the conversation."""

    id: Name | None = None
    index: int | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Strict):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(max_length=1000)] | None = None
    reasoning_content: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=128)] | None = None
    tool_call_id: Name | None = None
    name: Name | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None


class Function(Strict):
    """A function that the model may call."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: JSON | None = None
    strict: bool | None = None


class Tool(Strict):
    """A tool of a request."""

    type: Literal["function"]
    function: Function


class NamedFunction(Strict):
    """The name of the function to call."""

    name: Name


class NamedTool(Strict):
    """A tool choice that names the tool."""

    type: Literal["function"]
    function: NamedFunction


class SchemaFormat(Strict):
    """A JSON schema that the reply has to follow."""

    name: Name = "reply"
    description: str | None = None
    schema_: JSON | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    """Form of the reply."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaFormat | None = None


class StreamOptions(Strict):
    """Options of a stream."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class SamplingFields(Strict):
    """How tokens are chosen; what is not given is the model's own default."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[TokenBias, Field(max_length=1024)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    stop: Stops | None = None
    n: Annotated[int, Field(ge=1, le=16)] | None = None


class CommonFields(SamplingFields):
    """What chat and completion requests share."""

    model: Name
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Name | None = None


class ChatRequest(CommonFields):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=2000)]
    max_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    thinking: bool | None = None
    """Ours: open a thought (true), leave it out (false), or let the model choose."""
    thinking_budget: Annotated[int, Field(ge=0, le=10_000_000)] | None = None
    """Ours: tokens after which a thought is closed."""
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: Name | None = None
    prompt_cache_key: Name | None = None
    safety_identifier: Name | None = None
    verbosity: Name | None = None
    modalities: list[Literal["text"]] | None = None


Ids = Annotated[list[int], Field(min_length=1, max_length=100_000)]
"""A text as token ids."""


class CompletionRequest(CommonFields):
    """POST /v1/completions. The prompt is text, never a conversation; tokens may be given as ids."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=64)]
        | Ids
        | Annotated[list[Ids], Field(min_length=1, max_length=64)]
    ) = ""
    max_tokens: Annotated[int, Field(ge=0, le=10_000_000)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=1, le=16)] | None = None
    suffix: None = None


class EmbeddingRequest(Strict):
    """POST /v1/embeddings: mean-pooled hidden states of the last layer."""

    model: Name
    input: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=256)]
        | Ids
        | Annotated[list[Ids], Field(min_length=1, max_length=256)]
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: None = None
    user: Name | None = None
