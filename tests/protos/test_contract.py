"""The wire contract: documented everywhere, shaped as clients rely on, and equal to the committed stubs."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

ROOT = Path(__file__).resolve().parents[2]
STUBS = ROOT / "client" / "pagewire" / "v1"
PROTOS = sorted((ROOT / "protos" / "pagewire" / "v1").glob("*.proto"))

# Field numbers of descriptor.proto, from which the paths of source locations are made.
MESSAGES, ENUMS, SERVICES = 4, 5, 6
FIELDS, NESTED_MESSAGES, NESTED_ENUMS, ONEOFS = 2, 3, 4, 8
VALUES = METHODS = 2

SourcePath = tuple[int, ...]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, descriptor_pb2.FileDescriptorProto]:
    """The compiled protos with their comments, by file name."""
    output = tmp_path_factory.mktemp("protos") / "set.binpb"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'protos'}", "--include_source_info"]
    subprocess.run([*command, f"--descriptor_set_out={output}", *map(str, PROTOS)], check=True, timeout=180)
    parsed = descriptor_pb2.FileDescriptorSet.FromString(output.read_bytes())
    return {file.name: file for file in parsed.file}


def messages_of(
    messages: list[descriptor_pb2.DescriptorProto], prefix: SourcePath
) -> Iterator[tuple[SourcePath, descriptor_pb2.DescriptorProto]]:
    for index, message in enumerate(messages):
        if not message.options.map_entry:
            yield (*prefix, index), message
            yield from messages_of(list(message.nested_type), (*prefix, index, NESTED_MESSAGES))


def elements_of(file: descriptor_pb2.FileDescriptorProto) -> Iterator[tuple[SourcePath, str]]:
    """Every element that must have a comment: its path in the file's source information, and its name."""
    enums: list[tuple[SourcePath, descriptor_pb2.EnumDescriptorProto]]
    enums = [((ENUMS, index), enum) for index, enum in enumerate(file.enum_type)]
    for path, message in messages_of(list(file.message_type), (MESSAGES,)):
        yield path, message.name
        for index, field in enumerate(message.field):
            yield (*path, FIELDS, index), f"{message.name}.{field.name}"
        synthetic = {field.oneof_index for field in message.field if field.proto3_optional}
        for index, oneof in enumerate(message.oneof_decl):
            if index not in synthetic:
                yield (*path, ONEOFS, index), f"{message.name}.{oneof.name}"
        enums += [((*path, NESTED_ENUMS, index), enum) for index, enum in enumerate(message.enum_type)]
    for path, enum in enums:
        yield path, enum.name
        for index, value in enumerate(enum.value):
            yield (*path, VALUES, index), value.name
    for index, service in enumerate(file.service):
        yield (SERVICES, index), service.name
        for position, method in enumerate(service.method):
            yield (SERVICES, index, METHODS, position), f"{service.name}.{method.name}"


@pytest.mark.parametrize("proto", [path.name for path in PROTOS])
def test_every_element_has_a_comment(files: dict[str, descriptor_pb2.FileDescriptorProto], proto: str) -> None:
    file = files[f"pagewire/v1/{proto}"]
    locations = file.source_code_info.location
    commented = {tuple(location.path) for location in locations if location.leading_comments.strip()}
    elements = list(elements_of(file))
    assert len(elements) > 50
    assert not [name for path, name in elements if path not in commented]


def test_enums_start_unspecified(files: dict[str, descriptor_pb2.FileDescriptorProto]) -> None:
    for file in files.values():
        for enum in file.enum_type:
            prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper()
            assert (enum.value[0].name, enum.value[0].number) == (f"{prefix}_UNSPECIFIED", 0)


def test_sampling_parameters_tell_absent_from_zero(files: dict[str, descriptor_pb2.FileDescriptorProto]) -> None:
    messages = {message.name: message for message in files["pagewire/v1/inference.proto"].message_type}
    repeated = descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED
    fields = messages["SamplingParams"].field
    assert not [field.name for field in fields if not field.proto3_optional and field.label != repeated]


def test_committed_stubs_are_what_the_protos_generate(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHON": sys.executable}
    script = ROOT / "tools" / "generate_stubs.sh"
    subprocess.run([str(script), str(tmp_path)], check=True, timeout=120, env=environment)
    generated = {path.name: path.read_text() for path in (tmp_path / "pagewire" / "v1").iterdir()}
    committed = {path.name: path.read_text() for path in STUBS.glob("*_pb2*.py*")}
    assert generated.keys() == committed.keys()
    assert not [name for name in generated if generated[name] != committed[name]], "run make protos"


@pytest.mark.parametrize("stub", [path.name for path in sorted(STUBS.glob("*_pb2.py"))])
def test_stubs_load_with_protobuf_6_and_7(stub: str) -> None:
    # A runtime loads generated code of its own major version and of the one before.
    assert re.search(r"^# Protobuf Python Version: 6\.\d+\.\d+$", (STUBS / stub).read_text(), re.MULTILINE)
