"""The rooms of the package and the arrows between them: imports point down, and no circle can come to be."""

import ast
import pathlib

PACKAGE = pathlib.Path(__file__).resolve().parents[1] / "data_pipeline"

# From the top down.  A room imports only from floors below its own; rooms of one floor do not know each other.
FLOORS = (
    {"__main__"},
    {"cli"},
    {"commands"},
    {"application", "writer"},
    {"history"},
    {"migration", "lake", "operations", "http_server"},
    {"repository", "integrations", "bridge"},
    {"board"},
    {"files"},
    {"config", "background", "payloads"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
# `integrations` holds strangers: each of its modules may use this one, and no other.
SHARED_BY_INTEGRATIONS = {"outgoing"}


def imports(path: pathlib.Path) -> set[str]:
    """The dotted names below `data_pipeline` that a module imports, at its top or in a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "data_pipeline":
            base = node.module.partition(".")[2]
            found |= {base} if base else {alias.name for alias in node.names}
            if base:
                found |= {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.partition(".")[2] for a in node.names if a.name.split(".")[0] == "data_pipeline"}
    return {name for name in found if name}


def modules() -> list[tuple[str, pathlib.Path]]:
    """Each module with the room it lives in; a module at the top is a room of its own."""
    return [
        ((path.parent.name if path.parent != PACKAGE else path.stem), path)
        for path in PACKAGE.rglob("*.py")
        if path != PACKAGE / "__init__.py"
    ]


def test_every_room_has_its_floor():
    assert {room for room, _ in modules()} == set(FLOOR)


def test_every_import_points_down():
    up = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for room, path in modules()
        for name in imports(path)
        if (other := name.split(".")[0]) in FLOOR and other != room and FLOOR[other] <= FLOOR[room]
    ]
    assert not up


def test_the_integrations_do_not_know_each_other():
    strangers = [
        f"{path.stem} imports {name}"
        for room, path in modules()
        for name in imports(path)
        if room == "integrations"
        and name.startswith("integrations.")
        and name.split(".")[1] not in SHARED_BY_INTEGRATIONS
    ]
    assert not strangers


def test_the_subcommands_do_not_know_each_other():
    strangers = [
        f"{path.stem} imports {name}"
        for room, path in modules()
        for name in imports(path)
        if room == "commands" and name.startswith("commands.") and name.split(".")[1] != "progress"
    ]
    assert not strangers


def test_every_room_says_what_lives_there():
    for path in PACKAGE.glob("*/__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), path
