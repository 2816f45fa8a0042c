"""A temporary PostgreSQL server for tests, run by an unprivileged user: it refuses to run as root."""

import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import quote

from seaweed import free_ports

DEBIAN = sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")), reverse=True)
"""Where Debian's packages keep what is not on the PATH."""
PROGRAMS = {name: shutil.which(name, path=os.pathsep.join([os.environ["PATH"], *DEBIAN])) for name in ("initdb", "pg_ctl")}
INSTALLED = None not in PROGRAMS.values()
UNPRIVILEGED = "nobody"


class PostgreSQL:
    """One server; its user has a password of awkward characters and may create databases."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pg-"))
        self.port = free_ports(1)[0]
        self.password = f"p@ss/w%rd:{secrets.token_hex(8)}"
        self._user = UNPRIVILEGED if os.geteuid() == 0 else None
        (self.folder / "password").write_text(self.password)
        if self._user is not None:
            entry = pwd.getpwnam(self._user)
            for path in (self.folder, self.folder / "password"):
                os.chown(path, entry.pw_uid, entry.pw_gid)
        self._run(
            "initdb", "-D", self._data, "-U", "lab", "-A", "scram-sha-256", f"--pwfile={self.folder / 'password'}", "-E", "UTF8"
        )

    def url(self, user: str = "lab", password: str | None = None) -> str:
        return f"postgresql://{user}:{quote(password or self.password, safe='')}@127.0.0.1:{self.port}/sfd"

    def start(self) -> None:
        options = f"-c listen_addresses=127.0.0.1 -p {self.port} -k {self.folder}"
        self._run("pg_ctl", "-D", self._data, "-w", "-l", str(self.folder / "log"), "-o", options, "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-D", self._data, "-w", "-m", "fast", "stop")
        shutil.rmtree(self.folder)

    @property
    def _data(self) -> str:
        return str(self.folder / "data")

    def _run(self, program: str, *words: str) -> None:
        subprocess.run(
            [str(PROGRAMS[program]), *words], user=self._user, cwd=self.folder, check=True, stdout=subprocess.DEVNULL
        )
