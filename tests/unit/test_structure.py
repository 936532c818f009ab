"""Rules of the architecture that no single module can keep: who imports whom, and how large."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Set
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Where each dependency may be imported: files or folders below the repository.
EDGES: dict[str, tuple[str, ...]] = {
    "fabric": ("qwen_deploy/remote.py",),
    "paramiko": ("qwen_deploy/remote.py",),
    "ansible_runner": ("qwen_deploy/converge.py",),
    "pydantic": ("qwen_deploy/config", "qwen_deploy/reference.py", "service/qwen_service"),
    "yaml": ("qwen_deploy/config", "qwen_deploy/reference.py"),
    "typer": ("qwen_deploy/cli",),
    "rich": ("qwen_deploy/cli", "qwen_deploy/chat/markdown.py"),
    "markdown_it": ("qwen_deploy/chat/markdown.py",),
    "plotille": ("qwen_deploy/load/plot.py",),
    "click": (),  # typer has its own copy, whose exceptions are others
    "gradio": (
        "service/qwen_service/webui/interface.py",
        "service/qwen_service/webui/chatting.py",
    ),
    "httpx": ("service/qwen_service/webui", "qwen_deploy/chat", "qwen_deploy/sources/wire.py"),
    "httpx2": ("qwen_deploy/sources/huggingface.py",),
    "huggingface_hub": ("qwen_deploy/sources/huggingface.py",),
    "modelscope_hub": ("qwen_deploy/sources/modelscope.py",),
    "requests": ("qwen_deploy/sources/modelscope.py",),
    "zstandard": ("qwen_deploy/archive",),
    "prompt_toolkit": ("qwen_deploy/chat",),
    "uv": ("qwen_deploy/bundle.py",),
    "torch": ("service/qwen_service/engines",),
    "transformers": ("service/qwen_service/engines",),
    "accelerate": ("service/qwen_service/engines",),
    "llguidance": ("service/qwen_service/engines/grammar.py",),
    "fastapi": ("service/qwen_service",),
    "uvicorn": ("service/qwen_service",),
    "prometheus_client": (
        "service/qwen_service/middleware/metrics.py",
        "service/qwen_service/routes",
    ),
}
# Below each line stands what it may import; the same line is one layer.
LAYERS_OF_CONTROLLER = (
    {"__main__"},
    {"cli"},
    {"rollout", "removal", "packing", "access"},
    {"steps", "fleet", "pin"},
    {"supply", "holdings"},
    {"prospect", "weights", "probes", "converge", "chain"},
    {"plan", "agent"},
    {"preflight", "remote", "load", "sshtunnel"},
    {"facts", "share", "sources", "chat", "openssh", "airgap"},
    {"release", "commands", "archive", "keys", "parallel", "reference"},
    {"folder"},
    {"netproxy"},
    {"config", "checkpoint", "content"},
    {"bundle", "inventory", "hashes", "sizes", "host_side", "tunnel", "loopback", "complaints"},
    {"errors"},
    {"events"},
    {"__init__"},
)
LAYERS_OF_WEIGHTS = (
    {"__main__"},
    {"housekeeping"},
    {"pull"},
    {"relay"},
    {"store"},
    {"survey"},
    {"sources", "archives"},
    {"sums", "lfs", "fields", "disk"},
    {"checkpoint"},
    {"manifest", "safetensors"},
    {"errors"},
    {"__init__"},
)
LAYERS_OF_SERVICE = (
    {"__main__"},
    {"app"},
    {"operation"},
    {"routes"},
    {"streams", "webui"},
    {"middleware", "wire", "document"},
    {"lifecycle", "reply", "connection"},
    {"engines"},
    {"inference", "conversion"},
    {"protocol"},
    {"formats"},
    {"engine", "settings"},
    {"errors"},
    {"__init__"},
)
MUTUAL = {"archives", "sources"}  # they read one another's streams
LAYERS = {
    "qwen_deploy": LAYERS_OF_CONTROLLER,
    "qwen_service": LAYERS_OF_SERVICE,
    "qwen_weights": LAYERS_OF_WEIGHTS,
}
SLOW_TO_IMPORT = (
    *("fabric", "paramiko", "pydantic", "yaml", "ansible_runner", "httpx", "rich"),
    *("requests", "huggingface_hub", "modelscope", "modelscope_hub"),
)
MOST_LINES = 400


@dataclass(frozen=True)
class Source:
    """One module: its place, its text, and every module it imports, wherever in the file."""

    name: str
    text: str
    tree: ast.Module
    imports: frozenset[str]

    @property
    def packages(self) -> set[str]:
        return {name.split(".")[0] for name in self.imports}

    @property
    def place(self) -> tuple[str, str]:
        """The program, and the module or package of it, that this is or lies in."""
        program, module = self.name.removeprefix("service/").split("/")[:2]
        return program, module.removesuffix(".py")


def read(path: Path) -> Source:
    text = path.read_text()
    tree = ast.parse(text)
    return Source(str(path.relative_to(ROOT)), text, tree, frozenset(imports(tree)))


def imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


CONTROLLER = [read(path) for path in sorted((ROOT / "qwen_deploy").rglob("*.py"))]
ON_HOSTS = [read(path) for path in sorted((ROOT / "service").glob("qwen_*/**/*.py"))]
MODULES = [*CONTROLLER, *ON_HOSTS]


def test_a_dependency_is_imported_at_its_one_edge() -> None:
    outside = [
        (source.name, package)
        for source in MODULES
        for package in source.packages & EDGES.keys()
        if not source.name.startswith(EDGES[package])
    ]
    assert not outside


def test_what_runs_on_hosts_knows_only_itself() -> None:
    """The controller shares what it reads of models with the host's weights program."""
    packages = {"qwen_deploy", "qwen_service", "qwen_weights"}
    for source in MODULES:
        own = {part for part in source.name.split("/") if part in packages}
        may = own | {"qwen_weights"} if own == {"qwen_deploy"} else own
        assert source.packages & packages <= may, source.name


@pytest.mark.parametrize("program", LAYERS)
def test_a_program_imports_downward_only(program: str) -> None:
    layer = {name: at for at, names in enumerate(LAYERS[program]) for name in names}
    modules = [source for source in MODULES if source.place[0] == program]
    upward = [
        (source.name, other)
        for source in modules
        for name in source.imports
        if name.startswith(f"{program}.")
        for other in [name.split(".")[1]]
        if other not in (source.place[1], "__version__")
        if layer[other] <= layer[source.place[1]] and {other, source.place[1]} != MUTUAL
    ]
    assert not upward
    assert {source.place[1] for source in modules} == layer.keys()


def test_no_module_of_the_controller_imports_itself_by_way_of_others() -> None:
    """Not even late, inside a function."""
    modules = {_dotted(source): source.imports for source in CONTROLLER}
    graph = {name: _members(imports & modules.keys()) for name, imports in modules.items()}
    TopologicalSorter(graph).prepare()


def _dotted(source: Source) -> str:
    return source.name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _members(names: Set[str]) -> set[str]:
    """Without a package of which only a module is taken."""
    return {name for name in names if not any(one.startswith(f"{name}.") for one in names)}


def test_a_module_says_what_it_owns_and_stays_small() -> None:
    assert [one.name for one in MODULES if not ast.get_docstring(one.tree)] == []
    assert [one.name for one in MODULES if one.text.count("\n") >= MOST_LINES] == []


def test_only_the_command_line_prints() -> None:
    """Programs for hosts print what they are asked; `chat` is given its streams."""
    printing = [
        source.name
        for source in CONTROLLER
        if source.place[1] not in ("cli", "host_side", "__main__")
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Name | ast.Attribute)
        if ast.unparse(node) in ("print", "sys.stdout", "sys.stderr")
    ]
    assert not printing


def test_help_needs_nothing_that_is_slow_to_import() -> None:
    program = "import sys, qwen_deploy.cli.app; print(*sys.modules)"
    argv = [sys.executable, "-c", program]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=ROOT)
    assert not {name.split(".")[0] for name in done.stdout.split()} & set(SLOW_TO_IMPORT)
