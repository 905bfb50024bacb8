"""The layers import downwards only, and the three in the middle not from one another."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "driftkit"
BASE = {"artifacts", "config", "runtime", "protocols", "errors"}
MIDDLE = {"training", "evaluation", "objectives"}
METHODS = {"drift", "diffusion", "encoders"}
ALLOWED = {
    "cli": {"cli", "stages", "encoders", "datasets"} | MIDDLE | BASE,
    "stages": {"stages", "nn", "datasets"} | MIDDLE | METHODS | BASE,
    "training": {"training", "nn", "datasets"} | BASE,
    "evaluation": {"evaluation", "drift", "encoders", "nn", "datasets"} | BASE,
    "objectives": {"objectives", "drift", "diffusion", "encoders", "nn", "datasets"} | BASE,
    "drift": {"drift"} | BASE,
    "diffusion": {"diffusion"} | BASE,
    "encoders": {"encoders", "nn"} | BASE,
    "nn": {"nn"} | BASE,
    "datasets": {"datasets"} | BASE,
    "artifacts": {"artifacts", "errors"},
    "config": {"config", "errors"},
    "runtime": {"runtime", "errors"},
    "protocols": {"runtime"},
    "errors": set(),
}


def modules():
    return sorted(p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE or p.stem in ("protocols", "errors"))


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path):
    layer = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("driftkit."):
            imported.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            imported |= {a.name.split(".")[1] for a in node.names if a.name.startswith("driftkit.")}
    assert imported <= ALLOWED[layer], f"{path} reaches up to {sorted(imported - ALLOWED[layer])}"


def test_nothing_is_unpickled():
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [a.name for a in node.names] + [getattr(node, "module", None) or ""]
                assert "pickle" not in names, path
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords), path
