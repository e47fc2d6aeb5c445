"""Hosts of a lab for tests: real OpenSSH servers on this machine, with keys and settings of their own in a temporary folder.

As root, each host is a network namespace with its own address, hostname and /etc/hosts, the sshd on port 22, joined by a veth pair
to a bridge that this machine is on too; its link can be cut. It shares the files and the numbers of processes with this machine.
Elsewhere the hosts are sshd on 127.0.0.1, 127.0.0.2, … with free ports, and a cut kills them: see `Loopback`.

Nothing of the system is changed, but that /run/sshd is made where sshd, as root, wants it.
"""

import abc
import contextlib
import functools
import getpass
import ipaddress
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support import debian
from tests.support.debian import program

# An sshd that does not listen by then will not, nor does a process end by then that SIGKILL did not end.
PATIENCE_S = 20.0

_PACKAGES = {
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "sshd": "openssh-server",
    "rsync": "rsync",
}
_LISTENS = "Server listening on "
# All that is started over ssh inherits it, so that it is found again.
_MARK = "VITFORGE_TEST_HOST"

_SERVER = """\
ListenAddress {address}
Port {port}
HostKey "{folder}/host_key"
AuthorizedKeysFile "{keys}"
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
MaxStartups 100
SetEnv "{mark}={folder}"
Subsystem sftp internal-sftp
"""

_CLIENT = """\
Host {name}
    HostName {address}
    Port {port}
"""

_ALL_CLIENTS = """\
Host *
    User {user}
    IdentityFile "{folder}/client_key"
    IdentitiesOnly yes
    IdentityAgent none
    BatchMode yes
    StrictHostKeyChecking yes
    UserKnownHostsFile "{folder}/known_hosts"
    GlobalKnownHostsFile none
"""

# Gives the namespace a hostname and an /etc/hosts that nobody else sees, and becomes the command.
_ENTER = 'hostname "$1" && mount --bind "$2" /etc/hosts && shift 2 && exec "$@"'


def missing() -> str:
    """Why hosts cannot be had here, for a skip; "" if they can. Without `ip` they are on loopback."""
    if not sys.platform.startswith("linux"):
        return "the hosts of tests need Linux"
    debian.missing({"ip": "iproute2"})
    return debian.missing(_PACKAGES)


class Host(abc.ABC):
    """A machine of the lab: `name` is what a user types, `address` is where its ports are reached from the other hosts."""

    def __init__(self, name: str, address: str, port: int, folder: Path) -> None:
        """Makes the keys and settings of the host in `folder`/`name`; the client's keys are in `folder`."""
        self.name, self.address, self.port, self.folder = name, address, port, folder / name
        self._server: subprocess.Popen[bytes] | None = None
        self.folder.mkdir()
        _make_key(self.folder / "host_key")
        settings = {"address": address, "port": port, "folder": self.folder, "mark": _MARK}
        keys = folder / "client_key.pub"
        (self.folder / "sshd_config").write_text(_SERVER.format(**settings, keys=keys))

    @abc.abstractmethod
    def cut(self) -> None:
        """Cuts the host off from the others and from this machine."""

    @abc.abstractmethod
    def join(self) -> None:
        """Makes the host reachable again."""

    @abc.abstractmethod
    def pids(self) -> list[int]:
        """All that runs on the host: the sshd, and what was started over ssh, whether ssh still knows it or not."""

    def start(self) -> None:
        """Starts the sshd, and waits until it listens."""
        command = [program("sshd"), "-D", "-e", "-f", str(self.folder / "sshd_config")]
        before = self.log().count(_LISTENS)
        with (self.folder / "log").open("ab") as log:
            self._server = subprocess.Popen(
                [*self._inside(), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        _wait(lambda: self.log().count(_LISTENS) > before or self._ended())
        assert not self._ended(), f"the sshd of {self.name} did not start:\n{self.log()}"

    def stop(self) -> None:
        """Kills all that runs on the host."""
        _wait(lambda: not self._kill(self.pids()))

    def log(self) -> str:
        """What the sshd has written so far."""
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def _inside(self) -> list[str]:
        """What stands before a command that is to run on the host."""
        return []

    def _ended(self) -> bool:
        return self._server is not None and self._server.poll() is not None

    def _kill(self, pids: list[int]) -> list[int]:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._ended()  # a child that is not waited for would stay
        return pids


class Namespace(Host):
    """A host with a network of its own. A cut takes its link down: packets are lost both ways and nobody is told."""

    def __init__(self, name: str, address: str, folder: Path, space: str) -> None:
        """The host in the namespace `space`, whose link has the same name on this side."""
        super().__init__(name, address, 22, folder)
        self._space = space

    def cut(self) -> None:
        """Takes the link down. What runs on the host lives on."""
        _ip("link", "set", self._space, "down")

    def join(self) -> None:
        """Takes the link up; connections that both ends still hold go on."""
        _ip("link", "set", self._space, "up")

    def pids(self) -> list[int]:
        """All processes in the namespace."""
        return [int(pid) for pid in _ip("netns", "pids", self._space).split()]

    def _inside(self) -> list[str]:
        enter = ["sh", "-c", _ENTER, "sh", self.name, str(self.folder.parent / "etc_hosts")]
        return [program("ip"), "netns", "exec", self._space, "unshare", "--uts", *enter]


class Loopback(Host):
    """A host where namespaces are not allowed: an sshd on an address of the loopback and a free port.

    A cut kills the sshd with its sessions, not the commands in them: the client is told at once (255), a command sees the end of
    its stdin at once, and its ports stay reachable. A cut network tells neither of them, and leaves nothing reachable.
    """

    def cut(self) -> None:
        """Kills the sshd, those that serve its connections, and waits for their end."""
        servers = [pid for pid in self._descendants() if _of_process(pid, "comm").startswith("sshd")]
        self._kill(servers)
        _wait(lambda: not [pid for pid in servers if _alive(pid)])

    def join(self) -> None:
        """Starts the sshd again, on the same port, unless it runs."""
        if self._ended():
            self.start()

    def pids(self) -> list[int]:
        """The sshd and its descendants, and what carries the host's mark in its environment."""
        mark = f"{_MARK}={self.folder}"
        marked = (pid for pid in _processes() if mark in _of_process(pid, "environ").split("\0"))
        return [pid for pid in sorted({*self._descendants(), *marked}) if _alive(pid)]

    def _descendants(self) -> list[int]:
        if self._server is None or self._ended():
            return []
        parents = {pid: _parent(pid) for pid in _processes()}
        found = [self._server.pid]
        for pid in found:  # grows as it goes
            found += [child for child, parent in parents.items() if parent == pid]
        return found


@dataclass(frozen=True)
class Hosts(Sequence[Host]):
    """The hosts of a lab, and how this machine, the user's, reaches them."""

    every: list[Host]
    # For `ssh -F PATH HOST`, and rsync by `-e "ssh -F PATH"`.
    ssh_config: Path
    # The address of this machine, as the hosts see it.
    here: str
    # Whether each host has a network of its own.
    isolated: bool

    def __getitem__(self, index: int) -> Host:  # type: ignore[override]
        return self.every[index]

    def __len__(self) -> int:
        return len(self.every)

    @property
    def ssh(self) -> list[str]:
        """The command that takes the name of a host and what to run there."""
        return ["ssh", "-F", str(self.ssh_config)]


@contextlib.contextmanager
def hosts(folder: Path, count: int = 2, isolated: bool | None = None) -> Iterator[Hosts]:
    """`count` running hosts, host0, host1, …, whose files are in `folder`; at the end all that runs on them is killed.

    `isolated` says whether they must have networks of their own (True) or not (False); None takes what this machine allows.
    """
    assert not missing(), missing()
    assert not isolated or not why_not_isolated(), why_not_isolated()
    isolated = not why_not_isolated() if isolated is None else isolated
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    _make_key(folder / "client_key")
    if not os.geteuid():
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    with contextlib.ExitStack() as undo:
        make = _make_namespaces if isolated else _make_loopback
        here, every = make(folder, count, undo)
        for host in every:
            undo.callback(host.stop)
            host.start()
        yield Hosts(every, _write_client_settings(folder, every), here, isolated)


def _make_loopback(folder: Path, count: int, undo: contextlib.ExitStack) -> tuple[str, list[Host]]:
    """Hosts on 127.0.0.1, 127.0.0.2, …; nothing of them stays to be undone."""
    addresses = [f"127.0.0.{1 + number}" for number in range(count)]
    made = [Loopback(f"host{n}", address, _free_port(address), folder) for n, address in enumerate(addresses)]
    return "127.0.0.1", [*made]


def _make_namespaces(folder: Path, count: int, undo: contextlib.ExitStack) -> tuple[str, list[Host]]:
    """Namespaces on a bridge, this machine's address there being the first of its network."""
    bridge, network = _claim_bridge()
    undo.callback(_ip, "link", "delete", bridge)
    here = network[1]
    _ip("address", "add", f"{here}/{network.prefixlen}", "dev", bridge)
    _ip("link", "set", bridge, "up")
    addresses = {f"host{number}": str(network[10 + number]) for number in range(count)}
    known = {"localhost": "127.0.0.1", **addresses}
    (folder / "etc_hosts").write_text("".join(f"{address} {name}\n" for name, address in known.items()))
    made: list[Host] = []
    for number, (name, address) in enumerate(addresses.items()):
        space = f"{bridge}-{number}"
        _ip("netns", "add", space)
        undo.callback(_ip, "netns", "delete", space)
        _join_bridge(space, bridge, f"{address}/{network.prefixlen}")
        undo.callback(_ip, "link", "delete", space)  # a deleted namespace gives its links back only later
        made.append(Namespace(name, address, folder, space))
    return str(here), made


def _join_bridge(space: str, bridge: str, address: str) -> None:
    """Links the namespace to the bridge, with that address."""
    _ip("link", "add", "name", space, "type", "veth", "peer", "name", "eth0", "netns", space)
    _ip("link", "set", space, "master", bridge, "up")
    _ip("-n", space, "address", "add", address, "dev", "eth0")
    for link in ("lo", "eth0"):
        _ip("-n", space, "link", "set", link, "up")


def _claim_bridge() -> tuple[str, ipaddress.IPv4Network]:
    """A new bridge, and a network that this machine has no route to; the bridge's name keeps others from the same one."""
    routes = json.loads(_ip("-4", "-json", "route", "show", "table", "all") or "[]")
    taken = [ipaddress.IPv4Network(route["dst"]) for route in routes if route["dst"] != "default"]
    for number in range(256):
        third = (os.getpid() + number) % 256
        network = ipaddress.IPv4Network(f"10.231.{third}.0/24")
        if any(network.overlaps(other) for other in taken):
            continue
        with contextlib.suppress(RuntimeError):
            # With an address given, it does not change as links come and go.
            _ip(
                "link",
                "add",
                "name",
                f"vf-{third}",
                "address",
                f"02:00:0a:e7:{third:02x}:01",
                "type",
                "bridge",
            )
            return f"vf-{third}", network
    raise RuntimeError(
        f"no network within 10.231.0.0/16 is free; there are routes to {', '.join(map(str, taken))}"
    )


@functools.cache
def why_not_isolated() -> str:
    """Why hosts cannot have networks of their own here; empty if they can."""
    if os.geteuid():
        return "network namespaces need root"
    if not program("ip"):
        return "no ip here: apt-get install iproute2"
    probe = f"vf-probe-{os.getpid()}"
    try:
        _ip("netns", "add", probe)
        try:
            _ip("-n", probe, "link", "add", "name", "bridge0", "type", "bridge")
            _ip("-n", probe, "link", "add", "name", "veth0", "type", "veth", "peer", "name", "veth1")
            enter = ["sh", "-c", _ENTER, "sh", probe, "/etc/hosts", "true"]
            _ip("netns", "exec", probe, "unshare", "--uts", *enter)
        finally:
            _ip("netns", "delete", probe)
    except RuntimeError as error:
        return f"network namespaces are not allowed here: {error}"
    return ""


def _write_client_settings(folder: Path, every: Sequence[Host]) -> Path:
    """The ssh_config with the names of the hosts, and the known hosts."""
    known = []
    for host in every:
        place = host.address if host.port == 22 else f"[{host.address}]:{host.port}"
        known.append(f"{place} {(host.folder / 'host_key.pub').read_text()}")
    (folder / "known_hosts").write_text("".join(known))
    each = [_CLIENT.format(name=host.name, address=host.address, port=host.port) for host in every]
    path = folder / "ssh_config"
    path.write_text("".join([*each, _ALL_CLIENTS.format(user=getpass.getuser(), folder=folder)]))
    return path


def _make_key(path: Path) -> None:
    """A key without a passphrase, and its public half beside it."""
    _run(program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", path.name, "-f", str(path))


def _free_port(address: str) -> int:
    with socket.socket() as free:
        free.bind((address, 0))
        return int(free.getsockname()[1])


def _ip(*arguments: str) -> str:
    return _run(program("ip"), *arguments)


def _run(*command: str) -> str:
    """What a command that must succeed says."""
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {ended.returncode}: {ended.stderr.strip()}")
    return ended.stdout


def _wait(until: Callable[[], bool]) -> None:
    """Waits for what other processes do."""
    deadline = time.monotonic() + PATIENCE_S
    while not until():
        assert time.monotonic() < deadline, f"nothing happened within {PATIENCE_S:g} s"
        time.sleep(0.02)


def _processes() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def _of_process(pid: int, name: str) -> str:
    """A file of /proc/PID; empty if the process is gone, or another user's."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except OSError:
        return ""


def _alive(pid: int) -> bool:
    """Whether a process runs: it is there, and has not ended without being waited for."""
    return _of_process(pid, "stat").rpartition(")")[2].split()[:1] not in ([], ["Z"])


def _parent(pid: int) -> int:
    """The number of the parent; 0 if the process is gone."""
    fields = _of_process(pid, "stat").rpartition(")")[2].split()
    return int(fields[1]) if fields else 0
