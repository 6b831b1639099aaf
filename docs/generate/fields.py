"""The fields of a dataclass with their types and docstrings, read from the source; their modules are not imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dataengine.config.describe import field_docstrings

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Field:
    """A field of a dataclass."""

    name: str
    type: ast.expr
    meaning: str  # "" if there is none
    optional: bool  # has a default, so a file may lack it


@dataclass(frozen=True)
class Class:
    """A dataclass of a module, such as `dataengine.mds.types` and `Shard`."""

    module: str
    name: str
    summary: str  # first line of its docstring
    fields: tuple[Field, ...]


def read_class(module: str, name: str) -> Class:
    """The class of a module. Raises KeyError if there is none."""
    node = _classes(module)[name]
    return Class(module, name, (ast.get_docstring(node) or "").partition("\n")[0], tuple(_fields(node)))


def nested(found: Class) -> list[Class]:
    """The project's dataclasses that the fields of a class hold, directly, in their order."""
    names = {node.id: None for field in found.fields for node in ast.walk(field.type) if isinstance(node, ast.Name)}
    places = {name: _place(found.module, name) for name in names}
    return [read_class(*place) for place in places.values() if place and _is_dataclass(*place)]


def read_constant(module: str, name: str) -> object:
    """The value of a module's constant that is a literal. Raises KeyError if there is none."""
    for node in _tree(module).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return ast.literal_eval(node.value)
    raise KeyError(f"{module}.{name}")


def type_words(annotation: ast.expr) -> str:
    """A type as JSON has it: integer, text, list of ..., object of ..., or the name of a class.

    Raises ValueError for a type that has no words yet.
    """
    match annotation:
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return f"{type_words(left)} or {type_words(right)}"
        case ast.Constant(value=None):
            return "null"
        case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[first, *_])):
            return type_words(first)
        case ast.Subscript(value=ast.Name(id="tuple"), slice=ast.Tuple(elts=[first, ast.Constant(value=_)])):
            return f"list of {_many(first)}"
        case ast.Subscript(value=ast.Name(id="tuple"), slice=ast.Tuple(elts=several)):
            return f"[{', '.join(map(type_words, several))}]"
        case ast.Subscript(value=ast.Name(id="list" | "Sequence"), slice=first):
            return f"list of {_many(first)}"
        case ast.Subscript(value=ast.Name(id="dict" | "Mapping"), slice=ast.Tuple(elts=[_, value])):
            return f"object of {_many(value)}"
        case ast.Name(id=name):
            return _NAMES.get(name, name)
    raise ValueError(f"no words for the type {ast.unparse(annotation)}: add them to type_words")


def _many(annotation: ast.expr) -> str:
    """The same of several values."""
    words = type_words(annotation)
    if " or " in words:
        return f"({words})"
    return {"integer": "integers", "text": "texts", "number": "numbers", "any value": "any values"}.get(words, words)


_NAMES = {"int": "integer", "str": "text", "float": "number", "bool": "true or false", "Any": "any value"} | {
    "_Step": "integer",
    "Notes": "object of [integer, integer, text]",
    "Plain": "text, number, true, false or null",
    "TrainConfig": "object",
}


def _fields(node: ast.ClassDef) -> Iterator[Field]:
    meanings = field_docstrings(node)
    for statement in node.body:
        match statement:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=kind, value=default):
                if "ClassVar" not in ast.unparse(kind):
                    yield Field(name, kind, meanings.get(name, ""), default is not None)


@cache
def _tree(module: str) -> ast.Module:
    path = ROOT / f"{module.replace('.', '/')}.py"
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def _classes(module: str) -> dict[str, ast.ClassDef]:
    return {node.name: node for node in _tree(module).body if isinstance(node, ast.ClassDef)}


def _place(module: str, name: str) -> tuple[str, str] | None:
    """Module and name of a class of the project that a module defines or imports."""
    if name in _classes(module):
        return module, name
    imports = [node for node in _tree(module).body if isinstance(node, ast.ImportFrom)]
    origin = next((node.module for node in imports if name in [alias.name for alias in node.names]), None) or ""
    return (origin, name) if origin.startswith(("dataengine.", "trainer.")) else None


def _is_dataclass(module: str, name: str) -> bool:
    node = _classes(module).get(name)
    return node is not None and any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)
