"""The rules that keep the components apart: who may import whom, and which folders are no packages."""

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "pagewire": ROOT / "client" / "pagewire",
    "pagewire_common": ROOT / "common" / "pagewire_common",
    "pagewire_router": ROOT / "router" / "pagewire_router",
    "pagewire_shard": ROOT / "shard" / "pagewire_shard",
    "pagewire_kernels": ROOT / "kernels" / "pagewire_kernels",
}
# What servers share with clients: the messages, and what sampling parameters may hold.
CONTRACT = ("pagewire.v1", "pagewire.parameter_table")
# What each package may import of the others.
ALLOWED_SIBLINGS = {
    "pagewire": ("pagewire",),
    "pagewire_common": ("pagewire_common", *CONTRACT),
    "pagewire_router": ("pagewire_router", "pagewire_common", *CONTRACT),
    "pagewire_shard": ("pagewire_shard", "pagewire_common", *CONTRACT, "pagewire_kernels"),
    "pagewire_kernels": ("pagewire_kernels",),
}
# Third-party packages that a package never imports, not even within a function.
FORBIDDEN = {
    "pagewire": ("torch", "triton", "transformers", "numba"),
    "pagewire_common": ("torch", "triton", "transformers", "numba"),
    "pagewire_router": ("torch", "triton", "transformers", "numba"),
    "pagewire_shard": (),
    "pagewire_kernels": (),
}
# The rooms of a package, floor by floor from the ground up. A room is a folder, or a module directly in the package; it
# imports, at run time and for types, only itself and rooms of lower floors.
FLOORS = {
    "pagewire_common": (
        ("json_struct",),
        (
            "protocol",
            "model_files",
            "sampling_params",
            "block_hash",
            "cache_groups",
            "histogram",
            "protobuf_bytes",
            "version",
            "garbage",
            "patience",
            "health_state",
        ),
        ("process_log", "sendable_text", "listen_address", "loop_watchdog"),
        ("shutdown", "tls", "rpc_status", "http_endpoint", "health_endpoint", "tracing"),
    ),
    "pagewire_router": (
        ("errors", "config", "caller", "timeline", "beams"),
        ("fair_slots", "request"),
        ("text", "scheduling", "request_runner"),
        ("groups", "output", "parsing"),
        ("metrics", "tracing"),
        ("admission",),
        ("inference",),
        ("grpc_front", "http_front"),
        ("server",),
        ("cli",),
        ("__main__",),
    ),
    "pagewire_shard": (
        ("errors", "config", "host_memory", "slot_tables", "pool_sizes"),
        ("grammar", "logits_processors", "parallel"),
        ("engine", "layers", "limits", "tracing"),
        ("models", "stepping", "sampling", "recording"),
        ("loading",),
        ("execution",),
        ("startup", "service"),
        ("process",),
        ("spare", "replay"),
        ("cli",),
        ("__main__",),
    ),
    "pagewire_kernels": (
        ("kv_cache", "sequence_state", "cpu", "gpu", "tuning"),
        (
            *(
                "activation",
                "append_tokens",
                "causal_conv",
                "copy_blocks",
                "few_rows_linear",
                "fused_moe",
                "layer_norm",
            ),
            *("packed_linear", "paged_attention", "prepare_inputs", "reshape_and_cache", "rms_norm", "rotary"),
            *("gated_rms_norm", "mamba2", "sample", "write_runs"),
        ),
        ("rotary_and_cache",),
        ("gated_delta_net", "latent_and_cache", "latent_attention"),
    ),
}
# Rooms of the router that every front uses, or that requests run in: they must not know a transport.
TRANSPORT_FREE = (
    *("errors", "caller", "fair_slots", "timeline", "request", "text", "scheduling", "request_runner"),
    *("output", "metrics", "tracing", "admission", "inference"),
)
TRANSPORTS = ("grpc", "grpc_health", "grpc_reflection", "uvicorn")
# llvmlite is the compiler inside numba.
KERNEL_DEPENDENCIES = {"torch", "triton", "numba", "llvmlite", "numpy"}


def imports(path: Path) -> Iterator[str]:
    """Yields the full name of everything a module imports; names taken from a package count as its submodules."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def modules(package: str) -> list[Path]:
    return sorted(PACKAGES[package].rglob("*.py"))


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_of_siblings_go_one_way(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in modules(package)
        for module in imports(path)
        if is_within(module, tuple(PACKAGES)) and not is_within(module, ALLOWED_SIBLINGS[package])
    ]
    assert not wrong


@pytest.mark.parametrize("package", PACKAGES)
def test_heavy_libraries_stay_where_they_belong(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in modules(package)
        for module in imports(path)
        if is_within(module, FORBIDDEN[package])
    ]
    assert not wrong


def room_of(package: str, module: str) -> str:
    """The room that a module of the package, or a name in one, belongs to; "" for the package itself."""
    return module.removeprefix(package).removeprefix(".").partition(".")[0]


def upward_imports(package: str, folder: Path) -> list[str]:
    """One line for each import that does not go to a lower floor."""
    floor_of = {room: floor for floor, rooms in enumerate(FLOORS[package]) for room in rooms}
    wrong = []
    for path in sorted(folder.rglob("*.py")):
        relative = path.relative_to(folder)
        room = relative.parts[0].removesuffix(".py")
        for module in imports(path):
            target = room_of(package, module) if is_within(module, (package,)) else room
            if target and room != "__init__" and target != room and floor_of[target] >= floor_of[room]:
                wrong.append(f"{relative} imports {module}")
    return wrong


@pytest.mark.parametrize("package", FLOORS)
def test_folders_import_only_from_floors_below(package: str) -> None:
    assert upward_imports(package, PACKAGES[package]) == []


def imports_of_transports(folder: Path) -> list[str]:
    """One line for each import of a transport by a room of the router that must not know one."""
    return [
        f"{path.relative_to(folder)} imports {module}"
        for path in sorted(folder.rglob("*.py"))
        for module in imports(path)
        if path.relative_to(folder).parts[0].removesuffix(".py") in TRANSPORT_FREE and is_within(module, TRANSPORTS)
    ]


def test_admission_and_output_know_no_transport() -> None:
    assert imports_of_transports(PACKAGES["pagewire_router"]) == []


@pytest.mark.parametrize("room", ["admission", "output"])
def test_an_import_of_a_transport_is_noticed(room: str, tmp_path: Path) -> None:
    (tmp_path / room).mkdir()
    (tmp_path / room / "planted.py").write_text("def late():\n    import grpc\n")
    assert imports_of_transports(tmp_path) == [f"{room}/planted.py imports grpc"]


@pytest.mark.parametrize("package", FLOORS)
def test_every_folder_has_a_floor(package: str) -> None:
    rooms = {path.relative_to(PACKAGES[package]).parts[0].removesuffix(".py") for path in modules(package)}
    listed = [room for floor in FLOORS[package] for room in floor]
    assert sorted(rooms - {"__init__"}) == sorted(listed)


@pytest.mark.parametrize("package", FLOORS)
def test_an_upward_import_is_noticed(package: str, tmp_path: Path) -> None:
    lowest, highest = FLOORS[package][0][0], FLOORS[package][-1][0]
    (tmp_path / lowest).mkdir()
    planted = tmp_path / lowest / "planted.py"
    planted.write_text(f"if TYPE_CHECKING:\n    from {package}.{highest} import anything\n")
    assert upward_imports(package, tmp_path) == [f"{lowest}/planted.py imports {package}.{highest}.anything"]


def test_kernels_depend_on_little() -> None:
    allowed = KERNEL_DEPENDENCIES | {"pagewire_kernels"} | sys.stdlib_module_names
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in modules("pagewire_kernels")
        for module in imports(path)
        if module.split(".")[0] not in allowed
    ]
    assert not wrong


def modules_loaded_by(package: str) -> set[str]:
    """Imports a package with all its modules in a fresh interpreter; returns the top-level modules then loaded.

    Left out are commands, and what plugs into a program that no part of pagewire needs.
    """
    script = (
        "import importlib, pkgutil, sys\n"
        f"package = importlib.import_module({package!r})\n"
        "for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "    if not module.name.endswith(('__main__', 'pagewire.lm_eval')):\n"
        "        importlib.import_module(module.name)\n"
        "print(*{name.partition('.')[0] for name in sys.modules})\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_router_loads_no_model_library() -> None:
    loaded = modules_loaded_by("pagewire_router")
    assert not loaded & {"torch", "transformers", "triton", "numba", "pagewire_shard", "pagewire_kernels"}


def test_the_client_loads_no_part_of_the_server() -> None:
    loaded = modules_loaded_by("pagewire")
    assert not loaded & {"torch", "transformers", "pagewire_router", "pagewire_shard", "pagewire_kernels"}


def test_the_wire_types_load_without_the_client() -> None:
    script = "import sys, pagewire.v1.shard_pb2; print(*[name for name in sys.modules if name.startswith('pagewire')])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=180, check=True)
    assert set(done.stdout.split()) == {"pagewire", "pagewire.v1", "pagewire.v1.inference_pb2", "pagewire.v1.shard_pb2"}


def test_component_and_test_folders_are_no_packages() -> None:
    tests = ROOT / "tests"
    folders = [
        ROOT / name for name in ("client", "common", "router", "shard", "kernels", "protos", "tools", "benchmarks")
    ]
    folders += [tests, *(path for path in tests.rglob("*") if path.is_dir())]
    assert not [str(folder.relative_to(ROOT)) for folder in folders if (folder / "__init__.py").exists()]


def test_no_module_named_kernels_is_ours() -> None:
    # transformers imports a distribution of this name if it finds one.
    spec = importlib.util.find_spec("kernels")
    assert spec is None or spec.origin is None or ROOT not in Path(spec.origin).parents


def test_every_package_is_typed() -> None:
    assert not [package for package, folder in PACKAGES.items() if not (folder / "py.typed").exists()]
