"""An Ollama model: the GGUF file and a Modelfile that names it, its template, its stop tokens and its context."""

from pathlib import Path

from onesitting.export.gguf import write_gguf
from onesitting.export.source import Source, whole_folder
from onesitting.runlog import write_atomic

CHAT_TEMPLATE_GO = """
{{- if .Tools }}<|im_start|>system
{{ if .System }}{{ .System }}

{{ end }}# Tools
{{- range .Tools }}
{{ . }}
{{- end }}<|im_end|>
{{ else if .System }}<|im_start|>system
{{ .System }}<|im_end|>
{{ end }}
{{- range $i, $message := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 }}
{{- if eq .Role "user" }}<|im_start|>user
{{ .Content }}<|im_end|>
{{ else if eq .Role "assistant" }}<|im_start|>assistant
{{ if .Thinking }}<think>{{ .Thinking }}</think>
{{ end }}{{ .Content }}
{{- range $number, $call := .ToolCalls }}
{{- if or $message.Content $number }}
{{ end }}<tool_call>
{"name": "{{ $call.Function.Name }}", "arguments": {{ $call.Function.Arguments }}}
</tool_call>
{{- end }}<|im_end|>
{{ else if eq .Role "tool" }}<|im_start|>user
<tool_response>
{{ .Content }}
</tool_response><|im_end|>
{{ end }}
{{- if and $last (ne .Role "assistant") }}<|im_start|>assistant
{{ end }}
{{- end }}
""".strip()
"""The chat format in Go's template language, which Ollama renders with; its JSON has no blanks after , and :"""


def write_ollama(source: Source, folder: Path, dtype: str = "f16") -> Path:
    """Write the GGUF file and the Modelfile; the folder comes back. Raises UserError as `write_gguf`."""
    with whole_folder(folder) as partial:
        name = f"{source.name}-{dtype}.gguf"
        write_gguf(source, partial / name, dtype)
        write_atomic(partial / "Modelfile", modelfile(source, name))
    return folder


def modelfile(source: Source, gguf_name: str) -> str:
    """The text of the Modelfile beside a GGUF file of that name."""
    tokenizer = source.tokenizer
    stops = [token for token, i in tokenizer.special_ids.items() if i in tokenizer.stop_ids]
    is_chat = {"<|im_start|>", "<|im_end|>"} <= tokenizer.special_ids.keys()
    template = CHAT_TEMPLATE_GO if is_chat else "{{ .Prompt }}"
    lines = [
        f"FROM ./{gguf_name}",
        f'TEMPLATE """{template}"""',
        f"PARAMETER num_ctx {source.cfg.context_length}",
        *(f'PARAMETER stop "{stop}"' for stop in stops),
    ]
    return "\n".join(lines) + "\n"
