"""A walk over syntax trees for calls that run what they read, start a shell, or listen on the network."""

import ast
from collections.abc import Iterator

MODULES = {
    "pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "http.server", "socketserver",
    "xmlrpc.server", "code", "codeop", "runpy", "imp", "asyncio.base_events",
}  # fmt: skip
CALLS = {
    "eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec", "os.system", "os.popen", "os.execv",
    "os.execve", "os.execvp", "os.spawnl", "os.spawnv", "pty.spawn", "subprocess.getoutput",
    "subprocess.getstatusoutput", "asyncio.create_subprocess_shell", "asyncio.start_server", "socket.create_server",
    "torch.jit.load",
    "torch.package.PackageImporter", "torch.hub.load", "tempfile.mktemp", "tarfile.extractall", "shutil.unpack_archive",
}  # fmt: skip
METHODS = {"extractall", "bind", "listen", "serve_forever"}  # of archives, sockets and servers
YAML = {"load", "load_all", "full_load", "full_load_all", "unsafe_load", "unsafe_load_all"}


def forbidden(source: str) -> Iterator[str]:
    """What stands in the source that must not, each with its line."""
    tree = ast.parse(source)
    names = _imported(tree)
    for node in ast.walk(tree):
        for what in _problems(node, names):
            yield f"line {getattr(node, 'lineno', 0)}: {what}"


def _imported(tree: ast.AST) -> dict[str, str]:
    """Local name -> what it was imported as, so that no alias hides anything."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {a.asname: a.name for a in node.names if a.asname}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return names


def _problems(node: ast.AST, names: dict[str, str]) -> Iterator[str]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        within = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in [*within, *(".".join([*within, a.name]) for a in node.names)]:
            if name in MODULES or name.rpartition(".")[2] == "pickle":
                yield f"imports {name}"
    elif isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Load):
        name = _dotted(node, names)
        if name in CALLS or name.rpartition(".")[2] == "Unpickler":
            yield f"uses {name}"
    elif isinstance(node, ast.Call):
        yield from _calls(node, names)


def _calls(node: ast.Call, names: dict[str, str]) -> Iterator[str]:
    name = _dotted(node.func, names)
    last = name.rpartition(".")[2]
    given = {k.arg: ast.unparse(k.value) for k in node.keywords}
    if name == "torch.load" and given.get("weights_only") != "True":
        yield "calls torch.load without weights_only=True"
    if name in ("numpy.load", "np.load") and given.get("allow_pickle", "False") != "False":
        yield "calls numpy.load with pickles allowed"
    if given.get("shell", "False") != "False":
        yield f"calls {name} with a shell"
    if name.startswith(("yaml.", "ruamel.")) and last in YAML:
        yield f"calls {name}"
    if isinstance(node.func, ast.Attribute) and last in METHODS:
        yield f"calls .{last}()"


def _dotted(node: ast.AST, names: dict[str, str]) -> str:
    text = ast.unparse(node)
    first, dot, rest = text.partition(".")
    return names.get(first, first) + dot + rest
