"""The laboratory's commands over two small servers instead of the real ones: `python small_laboratory.py up`."""

import os
import sys
from collections.abc import Mapping

from infra.lab import __main__ as lab
from infra.lab import processes, supervisor
from infra.lab.credentials import Credentials
from infra.lab.databases import Databases
from infra.lab.servers import Server
from infra.lab.settings import Settings

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('stubborn', flush=True); time.sleep(600)"
BROKEN = "import sys; print('the disk is on fire'); sys.exit(3)"


def servers(settings: Settings, credentials: Credentials, databases: Databases, ports: Mapping[str, int]) -> list[Server]:
    port = settings.prefect_port
    web = (sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(settings.folder / "logs"))
    program, page = (BROKEN, "none") if "SMALL_BROKEN" in os.environ else (STUBBORN, "worker.log")
    return [
        Server("prefect", web, {}, 0, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port}", 5.0, (("127.0.0.1", port),)),
        Server("worker", (sys.executable, "-c", program), {}, 1, health=f"http://127.0.0.1:{port}/{page}", patience=0.5),
    ]


if __name__ == "__main__":
    supervisor.servers = servers
    processes.AFTER_TERM = 0.5
    lab.COMMAND = (sys.executable, __file__, "run")
    lab.main()
