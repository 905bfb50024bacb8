"""No line of driftkit runs what it reads, starts a shell or listens; and the walk that says so finds what it should."""

from pathlib import Path

import pytest

from tests.hostile.forbidden import forbidden

PACKAGE = Path(__file__).parents[2] / "driftkit"
ALLOWED = {
    "stages/export.py": "uses torch.jit.load",  # of the graph that it has just written, to compare it
    "datasets/cifar_pickle.py": "imports pickle",  # whose find_class permits three names and calls none of them
}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_forbidden_stands_in_the_package(path):
    allowed = ALLOWED.get(path.relative_to(PACKAGE).as_posix())
    assert [what for what in forbidden(path.read_text()) if what.partition(": ")[2] != allowed] == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "import pickle as p",
        "from pickle import loads",
        "from pickle import Unpickler as Reader",
        "from torch.serialization import pickle",
        "Reader = thing.Unpickler",
        "import dill",
        "import marshal",
        "import shelve",
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "import torch\ntorch.load(path, weights_only=safe)",
        "import torch as t\nt.load(path)",
        "from torch import load\nload(path)",
        "import torch\ntorch.jit.load(path)",
        "import torch\ntorch.hub.load(repository, name)",
        "eval(text)",
        "exec(text)",
        "compile(text, name, 'exec')",
        "call = eval",
        "import builtins\nbuiltins.exec(text)",
        "__import__(name)",
        "import os\nos.system(line)",
        "from os import system\nsystem(line)",
        "import os as o\no.popen(line)",
        "import subprocess\nsubprocess.run(line, shell=True)",
        "import subprocess as s\ns.Popen(line, shell=wanted)",
        "import subprocess\nsubprocess.getoutput(line)",
        "import yaml\nyaml.load(text, Loader=yaml.FullLoader)",
        "from yaml import unsafe_load\nunsafe_load(text)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "from numpy import load\nload(path, allow_pickle=wanted)",
        "import http.server",
        "from http import server",
        "from http.server import ThreadingHTTPServer",
        "import socketserver",
        "import socket\nsocket.socket().bind(place)",
        "import socket\nsocket.socket().listen()",
        "import socket\nsocket.create_server(place)",
        "import tarfile\ntarfile.open(path).extractall(folder)",
        "import shutil\nshutil.unpack_archive(path)",
        "import tempfile\ntempfile.mktemp()",
    ],
)
def test_the_walk_finds_it(line):
    assert list(forbidden(line))


@pytest.mark.parametrize(
    "line",
    [
        "import torch\ntorch.load(path, weights_only=True)",
        "import numpy as np\nnp.load(path, allow_pickle=False)",
        "import subprocess\nsubprocess.Popen(words)",
        "import re\nre.compile(pattern)",
        "import torch\ntorch.compile(network)",
        "network.eval()",
        "from safetensors.torch import load_file\nload_file(path)",
        "import yaml\nyaml.safe_load(text)",
        "import pickletools\npickletools.genops(data)",
    ],
)
def test_the_walk_leaves_the_rest_alone(line):
    assert list(forbidden(line)) == []
