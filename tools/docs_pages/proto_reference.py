"""Reference pages of the two protocols: every method, message and field of protos/, with its comment."""

import re
import tempfile
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
    ServiceDescriptorProto,
)

from docs_pages.markdown import NOTE, cell, table

ROOT = Path(__file__).resolve().parents[2]
PROTOS = ROOT / "protos"
PACKAGE = "pagewire.v1"

# Numbers of fields in google/protobuf/descriptor.proto, of which the paths of comments consist.
SYNTAX, MESSAGES, ENUMS, SERVICES = 12, 4, 5, 6
FIELDS, ONEOFS, VALUES, METHODS = 2, 8, 2, 2

COMPOUND = (FieldDescriptorProto.TYPE_MESSAGE, FieldDescriptorProto.TYPE_ENUM)


def inference_page() -> str:
    """Returns the page of the public service."""
    return _Page("inference.proto").text("# gRPC: Inference")


def shard_page() -> str:
    """Returns the page of the protocol between routers and shards."""
    return _Page("shard.proto").text("# gRPC: Shard")


def read_file(name: str) -> FileDescriptorProto:
    """The descriptor of a file of protos/, comments included."""
    from grpc_tools import protoc

    path = f"{PACKAGE.replace('.', '/')}/{name}"
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory, "set")
        includes = [f"-I{PROTOS}", f"-I{files('grpc_tools') / '_proto'}"]
        status = protoc.main(["protoc", *includes, "--include_source_info", f"--descriptor_set_out={output}", path])
        if status != 0:
            raise SystemExit(f"protoc cannot read {path}")
        return FileDescriptorSet.FromString(output.read_bytes()).file[0]


class _Page:
    """One file, as Markdown. Paths are those of SourceCodeInfo.Location."""

    def __init__(self, name: str) -> None:
        self._file = read_file(name)
        self._comments = {tuple(c.path): c for c in self._file.source_code_info.location}

    def text(self, heading: str) -> str:
        intro = f"Package `{PACKAGE}`, from [`{self._file.name}`](../../protos/{self._file.name})."
        overview = self._overview()
        parts = [NOTE, heading, overview, intro] if overview else [NOTE, heading, intro]
        parts += [self._service(service, (SERVICES, i)) for i, service in enumerate(self._file.service)]
        parts.append("## Messages")
        parts += [self._message(message, (MESSAGES, i)) for i, message in enumerate(self._file.message_type)]
        if self._file.enum_type:
            parts.append("## Enums")
        parts += [self._enum(enum, (ENUMS, i)) for i, enum in enumerate(self._file.enum_type)]
        return "\n\n".join(part.strip() for part in parts) + "\n"

    def _overview(self) -> str:
        """The comment above the file's syntax line."""
        location = self._comments.get((SYNTAX,))
        return _paragraphs(location.leading_comments) if location else ""

    def _comment(self, path: Sequence[int]) -> str:
        return _paragraphs(self._comments[tuple(path)].leading_comments)

    def _service(self, service: ServiceDescriptorProto, path: tuple[int, ...]) -> str:
        methods = (
            (f"`{method.name}`", f"{self._side(method, 'input')} → {self._side(method, 'output')}", cell(comment))
            for i, method in enumerate(service.method)
            for comment in [self._comment((*path, METHODS, i))]
        )
        return "\n\n".join(
            [f"## {service.name}", self._comment(path), table(("method", "request → response", ""), methods)]
        )

    def _message(self, message: DescriptorProto, path: tuple[int, ...]) -> str:
        parts = [f"### {message.name}", self._comment(path)]
        rows = list(self._fields(message, path))
        parts.append(table(("field", "type", "no.", "meaning"), rows) if rows else "It has no fields.")
        return "\n\n".join(part.strip() for part in parts)

    def _fields(self, message: DescriptorProto, path: tuple[int, ...]) -> Iterator[tuple[str, str, str, str]]:
        """A row for each field; one before the first of a oneof."""
        oneofs_seen = set()
        for i, field in enumerate(message.field):
            is_member = field.HasField("oneof_index") and not field.proto3_optional
            if is_member and field.oneof_index not in oneofs_seen:
                oneofs_seen.add(field.oneof_index)
                oneof = message.oneof_decl[field.oneof_index]
                yield f"oneof `{oneof.name}`", "", "", cell(self._comment((*path, ONEOFS, field.oneof_index)))
            name = f"– `{field.name}`" if is_member else f"`{field.name}`"
            yield name, self._field_type(message, field), str(field.number), cell(self._comment((*path, FIELDS, i)))

    def _side(self, method: MethodDescriptorProto, side: str) -> str:
        """Request or response of a method."""
        streaming = method.client_streaming if side == "input" else method.server_streaming
        return ("stream of " if streaming else "") + self._type_link(getattr(method, f"{side}_type"))

    def _type_link(self, full_name: str) -> str:
        """A type of pagewire's as a link to its section, on this page or on that of the public service."""
        name = full_name.removeprefix(".")
        if not name.startswith(f"{PACKAGE}."):
            return f"`{name}`"
        short = name.removeprefix(f"{PACKAGE}.")
        own = {message.name for message in self._file.message_type} | {enum.name for enum in self._file.enum_type}
        return f"[`{short}`]({'' if short in own else 'inference.md'}#{short.lower()})"

    def _field_type(self, message: DescriptorProto, field: FieldDescriptorProto) -> str:
        """A field's type, with what proto3 says before it."""
        entry = next((nested for nested in message.nested_type if field.type_name.endswith(f".{nested.name}")), None)
        if entry is not None and entry.options.map_entry:
            key, value = (self._field_type(entry, part) for part in entry.field)
            return f"map of {key} to {value}"
        name = self._type_link(field.type_name) if field.type in COMPOUND else f"`{_scalar(field)}`"
        if field.label == FieldDescriptorProto.LABEL_REPEATED:
            return f"repeated {name}"
        return f"optional {name}" if field.proto3_optional else name

    def _enum(self, enum: EnumDescriptorProto, path: tuple[int, ...]) -> str:
        rows = (
            (f"`{value.name}`", str(value.number), cell(self._comment((*path, VALUES, i))))
            for i, value in enumerate(enum.value)
        )
        return "\n\n".join([f"### {enum.name}", self._comment(path), table(("value", "no.", "meaning"), rows)])


def _paragraphs(comment: str) -> str:
    """A comment as Markdown: lines of a paragraph joined."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", comment.strip()))


def _scalar(field: FieldDescriptorProto) -> str:
    return FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
