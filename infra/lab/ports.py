"""Ports: those that a user sets must be free; those that only SeaweedFS uses are chosen once and kept."""

import errno
import secrets
import socket
from collections.abc import Mapping

import psutil

from infra.lab.servers import SISTER, WEED_PORTS, Server
from infra.lab.settings import LOOPBACK, Settings
from sfd_core.host.errors import ResourceError

FIRST, COUNT = 20_000, 2_000
"""Ports that SeaweedFS gets; these and their sisters lie below those that systems give to outgoing connections."""


def choose_ports(kept: Mapping[str, int], fixed: Mapping[str, int], in_use: bool) -> dict[str, int]:
    """Return one port for each name: `fixed`, else the one `kept` if it is free or `in_use` by SeaweedFS, else a new one."""
    reused = {name: port for name, port in kept.items() if port not in fixed.values() and (in_use or _are_free(port))}
    chosen = reused | dict(fixed)
    candidates = iter(range(FIRST + secrets.randbelow(COUNT // 2), FIRST + COUNT))
    for name in WEED_PORTS:
        if name not in chosen:
            chosen[name] = next(port for port in candidates if port not in chosen.values() and _are_free(port))
    return {name: chosen[name] for name in WEED_PORTS}


def require_free(server: Server) -> None:
    """Raise `ResourceError` that names the process on a port of `server`, if there is one."""
    for host, port in server.ports:
        if not is_free(host, port):
            variable = Settings.variable(f"{server.name.removesuffix('-gate')}_port")
            raise ResourceError(
                f"port {port}, which {server.name} needs, is in use{_by_whom(port)}; end that, or choose another port: "
                f"make up {variable}=..."
            )


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen on host:port now. Raises `ResourceError` if `host` is no address of this machine."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except socket.gaierror as error:
        raise ResourceError(f"{host} is no address of this machine ({error}); set SFD_LAB_HOST to one, or unset it") from error
    except PermissionError as error:
        raise ResourceError(f"port {port} may not be used ({error}); choose one above 1023") from error
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise ResourceError(f"{host} is no address of this machine; set SFD_LAB_HOST to one, or unset it") from error
        return False
    return True


def _are_free(port: int) -> bool:
    return is_free(LOOPBACK, port) and is_free(LOOPBACK, port + SISTER)


def _by_whom(port: int) -> str:
    """Name the process that listens on a port, where this user may know it."""
    try:
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
            if listens and connection.pid:
                return f" by process {connection.pid} ({psutil.Process(connection.pid).name()})"
    except psutil.Error:
        pass
    return ""
