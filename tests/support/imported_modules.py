"""Run a program of sfd_core and write down which modules it had imported at its end.

python imported_modules.py FILE MODULE ARGUMENTS...
"""

import json
import runpy
import sys
from pathlib import Path


def main() -> None:
    """Run the module as a program."""
    file, module, *arguments = sys.argv[1:]
    sys.path[0] = ""
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    Path(file).write_text(json.dumps([name for name in sys.modules if name.split(".")[0] == "sfd_core"]))


if __name__ == "__main__":
    main()
