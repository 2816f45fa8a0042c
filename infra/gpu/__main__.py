"""`python -m infra.gpu check | bench | evidence | pack`; see docs/gpu.md."""

import argparse
from pathlib import Path

from infra.gpu.bench import bench
from infra.gpu.check import check
from infra.gpu.evidence import evidence
from infra.gpu.pack import pack
from infra.gpu.record import Record
from sfd_core.host.errors import exits_cleanly

SECONDS = {"check": 110.0, "bench": 230.0, "evidence": 340.0}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m infra.gpu", description="Measure the engine on this machine's device.")
    parts = parser.add_subparsers(dest="part", required=True)
    for name, seconds in SECONDS.items():
        part = parts.add_parser(name, help=f"writes OUT/{name}.json")
        part.add_argument("--out", type=Path, default=Path(".gpu/results"), help="folder of the results")
        part.add_argument("--seconds", type=float, default=seconds, help="nothing begins after these")
        part.add_argument("--tiny", action="store_true", help="tiny shapes: a trial on a CPU")
        if name != "evidence":
            part.add_argument("--only", action="append", default=[], metavar="TEXT", help="measurements with it in their name")
        else:
            part.add_argument("--images", type=Path, default=Path(".gpu/images.tar.xz"), help="what pack made")
            part.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE", help="of params.yaml")
    packing = parts.add_parser("pack", help="collects what a machine with little more than torch lacks")
    packing.add_argument("--out", type=Path, default=Path(".gpu"))
    packing.add_argument("--images", type=Path, help="folder with train/<class>/ and test/<class>/, such as CIFAR-10")
    packing.add_argument("--python", default="3.12", help="that machine's Python")
    return parser.parse_args()


@exits_cleanly
def main() -> None:
    """Run one part; exit code 1 if a measurement failed."""
    given = _arguments()
    if given.part == "pack":
        pack(given.out, given.images, given.python)
        return
    path = given.out / f"{given.part}.json"
    if given.part == "evidence":
        record = Record(path, given.seconds)
        evidence(record, given.tiny, given.out, given.images, given.changes)
    else:
        record = Record(path, given.seconds, given.only)
        {"check": check, "bench": bench}[given.part](record, given.tiny, given.out)
    print(f"{record.path}: {len(record.results)} results, failed: {', '.join(record.failed) or 'none'}")
    raise SystemExit(1 if record.failed else 0)


if __name__ == "__main__":
    main()
