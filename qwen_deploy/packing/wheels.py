"""The wheels of a lock file for another machine's Python, brought here by pip.

pip reads indexes as this machine is used to: its own configuration holds unless qwen-deploy.yml
names other places. Knows no bundle and no host.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qwen_weights import manifest as manifests
from qwen_weights.manifest import Artifact, Manifest

from qwen_deploy import hashes
from qwen_deploy.airgap.index import WHEELS_MODEL
from qwen_deploy.config import PYTORCH_CPU_INDEX, Pip
from qwen_deploy.errors import UsageError
from qwen_deploy.hashes import Stamp

# Debian 12, the oldest system that preflight lets pass, has glibc 2.36.
NEWEST_GLIBC = 36
_OLD_NAMES = ("manylinux2014", "manylinux2010", "manylinux1", "linux")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
# Patch releases between which a marker of the lock file may tell.
_PATCHES = ("0", "99")
# pip keeps nothing of a run that fails, and takes most of a second to begin one.
BATCH = 16
_EVIDENCE_LINES = 5
_OWN_PLACES = re.compile(r"^[^=]*\.(?:extra-index-url|find-links)=", re.MULTILINE)


class WheelsRefused(UsageError):
    """pip does not bring a wheel; nothing was written but what it had brought before."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """A line of the lock file that holds for the other machine."""

    text: str
    hashes: frozenset[str]

    @property
    def line(self) -> str:
        # Without its marker, which pip would judge by the Python that runs pip.
        return " ".join([self.text, *(f"--hash=sha256:{one}" for one in sorted(self.hashes))])


def requirements(lock: str, python: str) -> tuple[Requirement, ...]:
    """Those whose marker holds for x86_64 Linux and that Python."""
    joined = re.sub(r"^\s*#.*$", "", lock, flags=re.MULTILINE).replace("\\\n", " ")
    lines = [line for line in joined.splitlines() if line.strip()]
    return tuple(
        Requirement(head.partition(";")[0].strip(), frozenset(_HASH.findall(line)))
        for line in lines
        for head in (line.partition("--hash")[0],)
        if _holds(head.partition(";")[2].strip(), python)
    )


def _holds(marker: str, python: str) -> bool:
    from packaging.markers import Marker

    if not marker:
        return True
    elsewhere = {
        "python_version": python,
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "os_name": "posix",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
    }
    fulls = [f"{python}.{patch}" for patch in _PATCHES]
    return any(Marker(marker).evaluate(elsewhere | {"python_full_version": one}) for one in fulls)


def index_arguments(pip: Pip, accelerator: str, pip_config: str) -> list[str]:
    """`pip_config` is what `pip config list` prints here."""
    if not {"index_url", "extra_index_urls", "find_links"} & pip.model_fields_set:
        is_missing = accelerator == "cpu" and not _OWN_PLACES.search(pip_config)
        return ["--extra-index-url", PYTORCH_CPU_INDEX] if is_missing else []
    arguments = ["--index-url", pip.resolved_index_url]
    for url in pip.indexes_beside(accelerator):
        arguments += ["--extra-index-url", url]
    for place in pip.find_links:
        arguments += ["--find-links", place]
    if pip.ca_file and Path(pip.ca_file).is_file():
        arguments += ["--cert", pip.ca_file]
    return arguments


def download(
    lock: str,
    folder: Path,
    *,
    python: str,
    indexes: Sequence[str],
    tell: Callable[[str], None] = lambda text: None,
) -> Manifest:
    """Fills the folder with one wheel for each requirement and nothing else; what lies there
    already is not brought again. `tell` is given what pip is at."""
    needed = requirements(lock, python)
    folder.mkdir(parents=True, exist_ok=True)
    chosen = folder.parent / f"{folder.name}.txt"
    options = [*_download_arguments(python), *indexes, "--find-links", str(folder)]
    options += ["-d", str(folder), "-r", str(chosen)]
    for first in range(0, len(needed), BATCH):
        lines = [f"{one.line}\n" for one in needed[first : first + BATCH]]
        chosen.write_text("".join(lines))
        _run_pip(options, tell)
    return _manifest(folder, needed)


def pip_config() -> str:
    done = subprocess.run(_pip("config", "list"), capture_output=True, text=True)
    return done.stdout


def _pip(*arguments: str) -> list[str]:
    own = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    return [*own, *arguments]


def _download_arguments(python: str) -> list[str]:
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in range(NEWEST_GLIBC, 4, -1)]
    platforms += [f"{name}_x86_64" for name in _OLD_NAMES]
    return [
        *("download", "--no-deps", "--require-hashes", "--only-binary=:all:"),
        *("--progress-bar", "raw", "--python-version", python, "--implementation", "cp"),
        *(word for platform in platforms for word in ("--platform", platform)),
    ]


def _run_pip(arguments: Sequence[str], tell: Callable[[str], None]) -> None:
    output = subprocess.PIPE
    said: list[str] = []
    argv = _pip(*arguments)
    with subprocess.Popen(argv, stdout=output, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for text in _story(process.stdout, said):
            tell(text)
    if process.returncode:
        errors = [line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR: ")]
        raise WheelsRefused(
            "pip does not bring the wheels of the lock file",
            evidence=tuple((errors or said)[-_EVIDENCE_LINES:]),
            origin="pip download",
            hint="name an index under `pip:` in qwen-deploy.yml; what was brought is kept",
        )


def _story(lines: Iterable[str], said: list[str]) -> Iterator[str]:
    """What a person wants to see of pip's output; all but its progress goes to `said` too."""
    wheel = ""
    for line in lines:
        word, _, rest = line.strip().partition(" ")
        if word == "Progress":
            yield f"{wheel} {_share(rest)}".rstrip()
            continue
        said.append(line.strip())
        if word in ("Downloading", "Processing"):
            wheel = rest.partition(" ")[0].rpartition("/")[2]
            yield wheel


def _share(text: str) -> str:
    """Of `1234 of 5678`."""
    done, _, total = text.partition(" of ")
    is_known = done.isdecimal() and total.isdecimal() and int(total)
    return f"{int(done) / int(total):.0%}" if is_known else ""


def _manifest(folder: Path, needed: Sequence[Requirement]) -> Manifest:
    stamps = {path: Stamp.of(path.stat()) for path in folder.iterdir()}
    found = hashes.sha256_of_all(stamps, cache_path=folder.parent / f"{folder.name}.json")
    wanted = frozenset[str]().union(*(one.hashes for one in needed))
    chosen = [path for path, sha256 in found.items() if sha256 in wanted]
    if len(chosen) != len(needed):
        raise WheelsRefused(
            f"{folder} holds {len(chosen)} wheels where {len(needed)} are needed",
            hint=f"rm -r {folder}",
        )
    for path in set(found) - set(chosen):
        path.unlink()  # of another lock file, or of another Python
    artifacts = [Artifact(path.name, stamps[path].size, found[path]) for path in chosen]
    return manifests.make(WHEELS_MODEL, artifacts)
