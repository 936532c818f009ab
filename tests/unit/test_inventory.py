from __future__ import annotations

import pytest

from qwen_deploy.errors import UsageError
from qwen_deploy.inventory import Host, parse_host, parse_hosts

HOSTS = {
    "gpu-1": Host("gpu-1", "gpu-1"),
    "root@gpu-1": Host("gpu-1", "gpu-1", "root"),
    "gpu-1:2222": Host("gpu-1:2222", "gpu-1", None, 2222),
    "root@192.168.110.131:22": Host("192.168.110.131:22", "192.168.110.131", "root", 22),
    "2001:db8::1": Host("2001:db8::1", "2001:db8::1"),
    "root@fe80::1%eth0": Host("fe80::1%eth0", "fe80::1%eth0", "root"),
    "root@[2001:db8::1]:22": Host("[2001:db8::1]:22", "2001:db8::1", "root", 22),
    "[::1]": Host("::1", "::1"),
    "[::1]:22": Host("[::1]:22", "::1", None, 22),
    "主机": Host("主机", "主机"),
}


@pytest.mark.parametrize(("text", "host"), HOSTS.items(), ids=HOSTS)
def test_a_host_is_read_as_ssh_reads_it(text: str, host: Host) -> None:
    assert parse_host(text) == host
    assert str(host) == host.name


@pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)
def test_its_text_means_the_same_host_again(host: Host) -> None:
    assert parse_host(host.text) == host
    assert host.text == (f"{host.user}@{host.name}" if host.user else host.name)


@pytest.mark.parametrize(
    "text",
    [
        *("", "@gpu-1", "root@", "a@b@c", "gpu 1", "gpu-1:", "gpu-1:ssh", "gpu-1:٣"),
        *("gpu-1:0", "gpu-1:65536", "gpu-1:000022", "[::1", "[gpu-1]", "[gpu-1]:22"),
        *("::x::y", "a:b:c", "::1\n", "a b@::1"),
        *("-oX=y", "-oX@::1", "-l@gpu-1", "root@-oProxyCommand=x"),
    ],
)
def test_anything_else_is_refused_by_its_text(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_host(text)
    assert refused.value.message == f"`{text}` is not a host: should be [user@]address[:port]"
    assert refused.value.hint == "qwen-deploy up --host root@192.168.110.131:22"


def test_hosts_keep_their_order() -> None:
    assert [host.name for host in parse_hosts(["b", "root@a", "c:22"])] == ["b", "a", "c:22"]


def test_a_host_named_twice_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^host named twice: a, b$"):
        parse_hosts(["a", "b", "root@b", "a", "a:22"])
