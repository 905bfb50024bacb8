"""The layers import downwards only, no two modules that are not a pair share a name, and nothing is unpickled."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "driftkit"

# From the top of the house to the ground: a floor may import itself and those below it.
FLOORS = [
    "cli", "stages", "tutorial", "comparison", "probing", "scoring", "training", "methods", "encoders", "models",
    "metrics", "datasets", "storage", "config", "protocols", "runtime", "errors",
]  # fmt: skip

# A command has one module in `cli` and one in `stages`; several layers have a registry; methods share file names.
PAIRED = {"cli", "stages"}
PLUG_INS = "methods"
REGISTRY = "registry"  # of any room that things are plugged into
UNPICKLER = PACKAGE / "datasets" / "cifar_pickle.py"
PLUG_IN_ROOMS = {"registry", "base"}  # of every floor that is open to plug-ins


def modules():
    return sorted(p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE or p.stem in ("protocols", "errors"))


def tree(path):
    return ast.parse(path.read_text())


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path):
    floor = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    imported = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("driftkit."):
            imported.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            imported |= {a.name.split(".")[1] for a in node.names if a.name.startswith("driftkit.")}
    above = FLOORS[: FLOORS.index(floor)]
    assert not imported & set(above), f"{path} reaches up to {sorted(imported & set(above))}"


def test_every_folder_is_a_floor():
    folders = {p.name for p in PACKAGE.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert folders <= set(FLOORS)


def test_module_names_are_unique():
    places = defaultdict(set)
    for path in modules():
        floor, *inner = path.relative_to(PACKAGE).parts
        if path.stem not in {"__init__", *PLUG_IN_ROOMS} and not (floor == PLUG_INS and len(inner) == 2):
            places[path.stem].add(floor)
    doubled = {name: floors for name, floors in places.items() if len(floors) > 1 and floors != PAIRED}
    assert not doubled


def test_class_names_are_unique():
    places = defaultdict(list)
    for path in modules():
        for node in tree(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(str(path.relative_to(PACKAGE)))
    assert not {name: paths for name, paths in places.items() if len(paths) > 1}


def test_nothing_is_unpickled_but_by_one_reader_that_decides_what_may_be_named():
    reader = next(node for node in ast.walk(tree(UNPICKLER)) if isinstance(node, ast.ClassDef) and node.bases
                  and "Unpickler" in ast.unparse(node.bases[0]))  # fmt: skip
    assert any(isinstance(node, ast.FunctionDef) and node.name == "find_class" for node in reader.body)
    for path in modules():
        for node in ast.walk(tree(path)):
            if isinstance(node, (ast.Import, ast.ImportFrom)) and path != UNPICKLER:
                names = [a.name for a in node.names] + [getattr(node, "module", None) or ""]
                assert "pickle" not in names, path
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords), path
