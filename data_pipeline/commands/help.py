"""gex-bridge help: the pages that are installed with it."""

import argparse
import pathlib

from data_pipeline import BridgeError, config

HELP = "print one of the pages about running the bridge, or list them"

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "help"


class NoSuchTopic(BridgeError):
    """There is no page of that name."""

    exit_code = 2


def topics() -> dict[str, str]:
    """Topic → the title of its page, in alphabetical order."""
    return {
        path.stem: path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ") for path in sorted(FOLDER.glob("*.md"))
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    parser.add_argument("topic", nargs="?", metavar="TOPIC", help="which page; without it they are listed")


def run(args: argparse.Namespace, settings: config.Settings) -> int:
    """Print the page, or the list; returns the exit code.  Raises NoSuchTopic."""
    known = topics()
    if args.topic is None:
        width = max(map(len, known))
        print("\n".join(f"{topic:<{width}}  {title}" for topic, title in known.items()))
    elif args.topic in known:
        print((FOLDER / f"{args.topic}.md").read_text(encoding="utf-8"), end="")
    else:
        raise NoSuchTopic(f"no page {args.topic!r}; there are {', '.join(known)}")
    return 0
