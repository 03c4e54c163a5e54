"""gex-bridge check: see data_pipeline.operations.check."""

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from data_pipeline import BridgeError, config

if TYPE_CHECKING:
    from data_pipeline.operations.check import Check

HELP = "read journal, files and tables, and say what is whole"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    parser.add_argument(
        "--repair",
        action="store_true",
        help="make latest.json and the views anew where they are broken; only while no bridge runs",
    )
    parser.add_argument("--json", action="store_true", help="the result as one JSON object")
    config.add_flags(parser, only=("DATA_DIR",))


def run(args: argparse.Namespace, settings: config.Settings) -> int:
    """Do it; returns the exit code.  Raises BridgeError."""
    from data_pipeline.operations import check

    if not settings.data_dir.is_dir():
        raise BridgeError(f"there is no folder {settings.data_dir}")
    looked = check.Check(settings)
    look = looked.repair if args.repair else looked.run
    try:
        look(lambda part: print(f"reading {part} …", file=sys.stderr) if sys.stderr.isatty() else None)
    except OSError as problem:
        raise BridgeError(str(problem)) from problem
    result = _result(looked)
    print(json.dumps(result, indent=2) if args.json else _text(result))
    return 0 if looked.whole else 1


def _result(looked: "Check") -> dict[str, Any]:
    return {
        "data_dir": str(looked.root),
        "running": looked.running,
        "whole": looked.whole,
        "counts": looked.counts,
        "findings": [
            {
                "part": f.part,
                "path": f.path,
                "problem": f.problem,
                "broken": f.is_broken,
                "repaired": f.repaired,
                "remedy": f.remedy,
            }
            for f in looked.findings
        ],
    }


def _text(result: dict[str, Any]) -> str:
    lines = []
    for part, counts in result["counts"].items():
        broken = sum(f["broken"] and not f["repaired"] for f in result["findings"] if f["part"] == part)
        told = ", ".join(f"{name} {value}" for name, value in counts.items())
        lines.append(f"{part:<9}{f'{broken} BROKEN' if broken else 'whole':<10}{told}".rstrip())
    for found in result["findings"]:
        state = "repaired" if found["repaired"] else "BROKEN" if found["broken"] else "note"
        remedy = found["remedy"] and (found["remedy"] if found["repaired"] else f"--repair: {found['remedy']}")
        lines.append(f"{state:<9}{found['path']}: {found['problem']}{f' ({remedy})' if remedy else ''}")
    lines.append("everything is whole" if result["whole"] else "not everything is whole")
    return "\n".join(lines)
