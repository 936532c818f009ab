"""What a host must share with this machine to reach the same registries: apt sources, proxies, CA.

Reads the machine's configuration at run time. Does not know how a host is made of it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.lab.shell import LabError, run
from tests.pip_settings import PipSettings

APT = Path("/etc/apt")
CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
APT_OPTION = re.compile(
    r"Acquire::(https?|ftp|Retries|Queue-Mode|ForceIPv[46]|Check-|GzipIndexes|Languages|Max-)"
)
PROXIES = ("http_proxy", "https_proxy", "no_proxy")
RESOLVERS = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))


@dataclass(frozen=True, slots=True)
class Surroundings:
    suite: str
    mirror: str
    files: tuple[tuple[str, bytes], ...]


def load(pip: PipSettings) -> Surroundings:
    suite = _suite()
    sources = debian_sources(suite, APT)
    files = {f"/etc/apt/sources.list.d/machine{suffix}": text for suffix, text in sources.items()}
    proxies = _proxies()
    files["/etc/apt/apt.conf.d/90machine"] = _apt_options() + _apt_proxies(proxies)
    files["/etc/environment"] = "".join(f"{key}={value}\n" for key, value in proxies.items())
    for number, certificate in enumerate(_own_certificates(pip)):
        files[f"/usr/local/share/ca-certificates/machine-{number}.crt"] = certificate + "\n"
    contents = {path: text.encode() for path, text in files.items()} | _apt_files()
    mirror = mirror_of("\n".join(sources.values()))
    return Surroundings(suite, mirror, tuple(sorted(contents.items())))


def nameservers() -> tuple[str, ...]:
    """Those that a host can ask: a resolver on the machine's own loopback is of no use to it."""
    for path in RESOLVERS:
        text = path.read_text() if path.exists() else ""
        servers = re.findall(r"^nameserver\s+(\S+)", text, re.MULTILINE)
        if reachable := tuple(server for server in servers if not server.startswith("127.")):
            return reachable
    return ()


def known_hosts_entries() -> str:
    """The lines of the machine's /etc/hosts that mean the same elsewhere."""
    lines = Path("/etc/hosts").read_text().splitlines()
    loopback = ("127.", "::1", "fe00:", "ff00:", "ff02:", "#")
    return "".join(f"{line}\n" for line in lines if line.strip() and not line.startswith(loopback))


def _suite() -> str:
    release = Path("/etc/os-release").read_text()
    found = re.search(r"^VERSION_CODENAME=\"?([a-z]+)", release, re.MULTILINE)
    if not found or not re.search(r"^ID=\"?debian", release, re.MULTILINE):
        raise LabError("the lab makes its hosts from a Debian machine's own apt sources")
    return found[1]


def debian_sources(suite: str, apt: Path) -> dict[str, str]:
    """Debian's own entries; a third party's would need that party's keys and network."""
    of_suite = re.compile(rf"\b{suite}(-updates|-security|-backports)?\b")
    stanzas: list[str] = []
    lines: list[str] = []
    for path in sorted((apt / "sources.list.d").glob("*.sources")):
        stanzas += [part.strip() for part in re.split(r"\n\s*\n", path.read_text())]
    for path in (apt / "sources.list", *sorted((apt / "sources.list.d").glob("*.list"))):
        lines += path.read_text().splitlines() if path.exists() else []
    chosen = {
        ".sources": "\n\n".join(text for text in stanzas if _is_debian_stanza(text, of_suite)),
        ".list": "\n".join(
            line
            for line in lines
            if re.match(r"deb\s", line) and of_suite.search(line) and re.search(r"\bmain\b", line)
        ),
    }
    found = {suffix: text + "\n" for suffix, text in chosen.items() if text}
    if not found:
        raise LabError(f"no apt source of this machine names Debian's {suite} and main")
    return found


def _is_debian_stanza(text: str, of_suite: re.Pattern[str]) -> bool:
    fields = {
        key.lower(): value
        for key, value in re.findall(r"^([A-Za-z-]+):(.*(?:\n[ \t].*)*)", text, re.MULTILINE)
    }
    return (
        "deb" in fields.get("types", "").split()
        and bool(of_suite.search(fields.get("suites", "")))
        and "main" in fields.get("components", "").split()
        and fields.get("enabled", "yes").strip().lower() not in ("no", "false", "0")
    )


def mirror_of(sources: str) -> str:
    """The archive that holds the suite itself, not its security updates."""
    addresses = re.findall(
        r"(?:mirror\+file:/[^\s]+|https?://[^\s\]]+)", _without_comments(sources)
    )
    for address in addresses:
        if "security" in address:
            continue
        if address.startswith("mirror+file:"):
            path = "/" + address.removeprefix("mirror+file:").lstrip("/")
            return Path(path).read_text().split()[0]
        return str(address)
    raise LabError("no apt source of this machine has an http or https address for debootstrap")


def _without_comments(text: str) -> str:
    return re.sub(r"^\s*#.*$", "", text, flags=re.MULTILINE)


def _apt_options() -> str:
    dump = run("apt-config", "dump")
    return "".join(f"{line}\n" for line in dump.splitlines() if APT_OPTION.match(line))


def _apt_files() -> dict[str, bytes]:
    """Keys, credentials and mirror lists, and the files that apt's TLS options name."""
    folders = [APT / name for name in ("auth.conf.d", "trusted.gpg.d", "keyrings", "mirrors")]
    paths = [path for folder in folders if folder.is_dir() for path in folder.iterdir()]
    paths += [APT / "auth.conf", *map(Path, re.findall(r'"(/[^"]+)"', _apt_options()))]
    return {str(path): path.read_bytes() for path in paths if path.is_file() and path != CA_BUNDLE}


def _proxies() -> dict[str, str]:
    found = {name: os.environ.get(name) or os.environ.get(name.upper()) for name in PROXIES}
    return {name: value for name, value in found.items() if value}


def _apt_proxies(proxies: Mapping[str, str]) -> str:
    """apt inside a unit does not see /etc/environment."""
    return "".join(
        f'Acquire::{scheme}::Proxy "{proxies[f"{scheme}_proxy"]}";\n'
        for scheme in ("http", "https")
        if f"{scheme}_proxy" in proxies
    )


def _own_certificates(pip: PipSettings) -> list[str]:
    """Certificates that this machine trusts beyond Debian's, as a proxy that opens TLS needs."""
    named = [os.environ.get("SSL_CERT_FILE"), pip.ca_file, CA_BUNDLE]
    bundles = {Path(path) for path in named if path and Path(path).is_file()}
    trusted = {found for path in bundles for found in CERTIFICATE.findall(path.read_text())}
    shipped = Path("/usr/share/ca-certificates").rglob("*.crt")
    of_debian = {found for path in shipped for found in CERTIFICATE.findall(path.read_text())}
    return sorted(trusted - of_debian)
