"""Hashes of the code behind what a run makes, so that changed code counts as not done yet.

What counts is derived from imports: the definitions that a function reaches in its own module,
the modules of jdc that they import, all that these import, and the versions of other packages.
Comments, docstrings and layout do not count.
"""

import ast
import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.util
import sys
import unicodedata
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from jdc.prep.spec import content_hash

# What describes, checks and schedules, and changes no document.
FRAME = frozenset(
  f"jdc.prep.{name}"
  for name in (
    "catalog",
    "check",
    "code_hash",
    "commits",
    "ops",
    "plan_step",
    "problems",
    "spec",
    "stages",
    "store",
  )
) | {"jdc", "jdc.data", "jdc.prep"}
_BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")  # of statements in a statement
_DYNAMIC = "import_extra"  # imports the package that its first argument names


@dataclasses.dataclass
class Found:
  """Code: what was reached in modules, whole modules, and packages outside jdc."""

  parts: dict[str, str] = dataclasses.field(default_factory=dict)
  modules: dict[str, str] = dataclasses.field(default_factory=dict)
  packages: set[str] = dataclasses.field(default_factory=set)

  @property
  def hash(self) -> str:
    """The hash of all of it."""
    versions = {name: _version(name) for name in sorted(self.packages)}
    versions["unicodedata"] = unicodedata.unidata_version  # strings go by it, too
    return content_hash([self.parts, self.modules, {k: v for k, v in versions.items() if v}])


def of_modules(names: Iterable[str]) -> Found:
  """Returns modules, and all of jdc that they import."""
  found = Found()
  _follow(list(names), found)
  return found


def of_objects(objects: Iterable[Any], modules: Iterable[str] = ()) -> Found:
  """Returns the code of functions and classes, and of further modules."""
  found = Found()
  waiting = list(modules)
  for thing in objects:
    module = _parsed(thing.__module__)
    if module is None or thing.__module__ in FRAME:
      continue
    name = thing.__qualname__.partition(".")[0]
    if name not in module.names:  # made at run time: all of its module counts
      waiting.append(thing.__module__)
      continue
    for reached in module.reach(name):
      found.parts[f"{thing.__module__}.{reached}"] = module.part_hash(reached)
      waiting += module.part_imports(reached)
  _follow(waiting, found)
  return found


def _follow(waiting: list[str], found: Found) -> None:
  while waiting:
    name = waiting.pop()
    if name in found.modules or name in FRAME:
      continue
    if not name.startswith("jdc."):
      found.packages.add(name.partition(".")[0])
      continue
    module = _parsed(name)
    if module is not None:  # else it is something in a module
      found.modules[name] = module.hash
      waiting += module.imports


class _Module:
  """The syntax of a module, and its definitions by name."""

  def __init__(self, text: str):
    tree = ast.parse(text)
    self._walk = ast.walk if _DYNAMIC in text else _statements
    _drop_docstrings(tree)
    self.hash = _dump_hash(tree)
    self.imports = _imports(self._walk(tree))
    self.names: dict[str, list[ast.stmt]] = {}
    for node in tree.body:
      for name in _defined(node):
        self.names.setdefault(name, []).append(node)
    self._parts: dict[str, tuple[str, list[str], set[str]]] = {}

  def part_hash(self, name: str) -> str:
    """Returns the hash of what defines a name."""
    return self._part(name)[0]

  def part_imports(self, name: str) -> list[str]:
    """Returns the modules that the definition of a name imports."""
    return self._part(name)[1]

  def reach(self, name: str) -> list[str]:
    """Returns the names of the module that a definition uses, and those that these use."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
      here = waiting.pop()
      if here not in found:
        found.add(here)
        waiting += self._part(here)[2]
    return sorted(found)

  def _part(self, name: str) -> tuple[str, list[str], set[str]]:
    """Returns the hash of a definition, the modules it imports, and the names it uses."""
    if name not in self._parts:
      nodes = [_only(node, name) for node in self.names[name]]
      used = {n.id for node in nodes for n in ast.walk(node) if isinstance(n, ast.Name)}
      hashed = content_hash([_dump_hash(node) for node in nodes])
      imports = _imports(inner for node in nodes for inner in self._walk(node))
      self._parts[name] = hashed, imports, used & self.names.keys()
    return self._parts[name]


@functools.cache
def _parsed(name: str) -> _Module | None:
  """Returns a module, `None` where the name is none; code does not change in a process."""
  module = sys.modules.get(name)
  file = getattr(module, "__file__", None)
  if file is None:
    try:
      spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:  # a name in a module
      return None
    file = spec.origin if spec else None
  if not file or not file.endswith(".py"):
    return None
  with open(file, encoding="utf-8") as opened:
    return _Module(opened.read())


def _defined(node: ast.stmt) -> list[str]:
  if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
    return [node.name]
  if isinstance(node, ast.Import):
    return [alias.asname or alias.name.partition(".")[0] for alias in node.names]
  if isinstance(node, ast.ImportFrom):
    return [alias.asname or alias.name for alias in node.names]
  # Of an assignment the targets; of a loop or a branch all names that are bound in it.
  bound: list[ast.AST] = [node]
  if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
    bound = list(node.targets) if isinstance(node, ast.Assign) else [node.target]
  stored = (n for part in bound for n in ast.walk(part) if isinstance(n, ast.Name))
  return list(dict.fromkeys(n.id for n in stored if isinstance(n.ctx, ast.Store)))


def _only(node: ast.stmt, name: str) -> ast.stmt:
  if isinstance(node, ast.Import):
    held = [a for a in node.names if (a.asname or a.name.partition(".")[0]) == name]
    return ast.Import(names=held)
  if isinstance(node, ast.ImportFrom):
    held = [a for a in node.names if (a.asname or a.name) == name]
    return ast.ImportFrom(module=node.module, names=held, level=node.level)
  return node


def _statements(node: ast.AST) -> Iterator[ast.AST]:
  """Yields a node and the statements inside of it, which are few beside the expressions."""
  waiting = [node]
  while waiting:
    node = waiting.pop()
    yield node
    for block in _BLOCKS:
      waiting += getattr(node, block, ())


def _imports(nodes: Iterable[ast.AST]) -> list[str]:
  """Returns the modules that nodes import."""
  names: list[str] = []
  for node in nodes:
    if isinstance(node, ast.Import):
      names += [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
      names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    elif isinstance(node, ast.Call) and _called(node) == _DYNAMIC and node.args:
      names += [str(a.value) for a in node.args[:1] if isinstance(a, ast.Constant)]
  return names


def _called(node: ast.Call) -> str:
  function = node.func
  return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _drop_docstrings(tree: ast.Module) -> None:
  for node in _statements(tree):
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and node.body:
      first = node.body[0]
      if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        node.body = node.body[1:]


def _dump_hash(node: ast.AST) -> str:
  return hashlib.sha256(ast.dump(node).encode()).hexdigest()


@functools.cache
def _version(package: str) -> str:
  """Returns the version of a package, or of the build that a module goes by."""
  if package in ("zlib", "gzip"):
    return zlib.ZLIB_RUNTIME_VERSION
  if package in sys.stdlib_module_names:
    return ""
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return ""
