"""Recipes: what makes a shrunken model again, as a TOML file beside it.

A recipe has a table for the pipeline and one for each stage that was kept, with every setting. What was chosen by
measured time is written down as chosen: the optimizer, the plan, the form of INT8. So the same recipe on the same
machine gives the same bytes. A pyproject.toml may have the same tables, as ``[tool.onnxprune]``.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnxprune.errors import OnnxPruneError, UsageError
from onnxprune.errors.words import did_you_mean
from onnxprune.model.file import load
from onnxprune.planning.plan import PrunePlan
from onnxprune.runtime.environment import versions
from onnxprune.settings.pipeline import ShrinkSettings
from onnxprune.settings.reading import build, plain, read
from onnxprune.version import __version__
from onnxprune.workflow.stages import STAGES
from onnxprune.workflow.verdicts import ShrinkResult

log = logging.getLogger(__name__)

FORMAT = 1
_PACKAGES = ("onnx", "onnxruntime", "onnxruntime-gpu", "onnxsim", "numpy")
PYPROJECT = "pyproject.toml"
_PATHS = ("labels", "tokenizer", "alphabet", "vocabulary", "plan", "sensitivity", "rewind")  # settings that name files
_LARGEST = 2**26  # bytes of a recipe; plans of large models take most of them
_FILE = ("path", "sha256")
TABLES: Mapping[str, tuple[str, ...] | None] = {
    "recipe": None,
    **dict.fromkeys(("model", "data", "output"), _FILE),
    "shrink": None,
    **{stage.name: None for stage in STAGES},
    "versions": None,
}
"""The tables of a recipe, with the keys of those that aren't settings. A file may be its path alone."""


@dataclass(frozen=True, slots=True)
class ShrinkRecipe:
    """A recipe.

    Attributes:
        model: the file to shrink.
        output: the file to write.
        settings: the settings of the pipeline, with those of the stages.
        sha256: the digest of the file that was written then; None if the recipe doesn't say.
    """

    model: Path
    output: Path
    settings: ShrinkSettings
    sha256: str | None


def write_recipe(path: Path, model: Path, output: Path, settings: ShrinkSettings, result: ShrinkResult) -> str:
    """Return a recipe as text.

    Args:
        path: the file that it will be written to; other files are named relative to its folder.
        model: the model's file.
        output: the file that was written.
        settings: the settings that were used.
        result: what came out.

    Raises:
        UsageError: the package that writes TOML isn't installed (OP609).
    """
    try:
        import tomli_w
    except ImportError as error:
        raise UsageError("OP609", "recipes need the package tomli-w", hint="pip install tomli-w") from error
    data, own = settings.samples.data, _named(plain(settings), lambda file: _relative(file, path))
    own = {name: value for name, value in own.items() if name not in ("data", "checkpoint", "resume")}
    document: dict[str, Any] = {
        "recipe": FORMAT,
        "model": {"path": _relative(model, path), "sha256": load(model).sha256},
        "output": {"path": _relative(output, path), "sha256": load(output).sha256},
        "shrink": own | {"stages": list(result.kept), "timed": False},
        **{v.stage: _named(v.again, lambda file: _relative(file, path)) for v in result.verdicts if v.kept},
        "versions": {"onnxprune": __version__, **versions(*_PACKAGES)},
    }
    if isinstance(data, str | os.PathLike):
        document["data"] = {"path": _relative(data, path)}
        if Path(data).exists():
            document["data"]["sha256"] = digest(Path(data))
    head = f"# Made by onnxprune {__version__}. To make the model again: onnxprune run {path.name}\n"
    return head + tomli_w.dumps(_listed(document), multiline_strings=True)


def read_recipe(path: Path, changes: Sequence[tuple[str, str, Any]] = ()) -> ShrinkRecipe:
    """Read a recipe, and check that its files are those that it was written for.

    Args:
        path: its file, or a pyproject.toml.
        changes: tables, keys and values that replace those of the file.

    Raises:
        UsageError: it can't be read, has unknown keys, or is for other files (OP612).
        PlanError: a setting isn't allowed (OP303).
        ModelError: the model can't be read.
    """
    document = _document(path)
    for name, keys in TABLES.items():
        if keys is _FILE and isinstance(document.get(name), str):
            document[name] = {"path": document[name]}
    for table, key, value in changes:
        if not isinstance(document.setdefault(table, {}), dict):
            raise UsageError("OP612", f"{table} is no table", where=str(path))
        document[table][key] = value
    _check_names(document, path)
    if document.get("recipe") != FORMAT:
        cause = f"recipes of format {document.get('recipe')} can't be read, only those of format {FORMAT}"
        raise UsageError("OP612", cause, where=str(path))
    tables = {name: dict(document.get(name, {})) for name in TABLES if name != "recipe"}
    files = {name: _file(path, name, tables[name]) for name in ("model", "output", "data")}
    own = read(ShrinkSettings, _named(tables["shrink"], lambda file: _there(path, file)))
    try:
        settings = build(ShrinkSettings, own | ({} if files["data"] is None else {"data": files["data"]}))
    except OnnxPruneError as error:
        raise error.at(f"{path}, [shrink] {error.where or ''}".rstrip()) from error
    assert files["model"] is not None and files["output"] is not None
    for name in ("model", "data"):
        wanted, file = tables[name].get("sha256"), str(files[name])
        if wanted and wanted != (load(file).sha256 if name == "model" else digest(Path(file))):
            hint = f"make a new recipe, or pass {name}.sha256= to take the file as it is"
            raise UsageError("OP612", f"the recipe was made for another {name}", where=file, hint=hint)
    now = {"onnxprune": __version__, **versions(*_PACKAGES)}
    if other := [f"{name} {version}" for name, version in tables["versions"].items() if now.get(name) != version]:
        log.warning("the recipe was made with %s, so bytes may differ", ", ".join(other))
    options = {stage.name: _named(tables[stage.name], lambda file: _there(path, file)) for stage in STAGES}
    if _is_plan(options["prune"].get("plan")):
        options["prune"]["plan"] = PrunePlan.from_json(options["prune"]["plan"], str(path))
    return ShrinkRecipe(
        Path(files["model"]), Path(files["output"]), replace(settings, options=options), tables["output"].get("sha256")
    )


def project_recipe(folder: Path) -> Path:
    """Return the nearest pyproject.toml with a recipe, in a folder or above it.

    Raises:
        UsageError: there is none (OP612).
    """
    for place in (folder, *folder.parents):
        if (found := place / PYPROJECT).is_file() and _own(_tables(found)) is not None:
            return found
    cause = f"no recipe is named, and there is no {PYPROJECT} with [tool.onnxprune] here or above"
    raise UsageError("OP612", cause, hint="name a recipe, as the command `shrink` writes it")


def digest(path: Path) -> str:
    """Return the digest of a file, or of the names and contents of a folder's files."""
    total = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        if path.is_dir():
            total.update(f"{file.relative_to(path).as_posix()}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while chunk := stream.read(2**20):
                total.update(chunk)
    return total.hexdigest()


def _document(path: Path) -> dict[str, Any]:
    """Return the tables of a recipe, or those that a pyproject.toml has of one."""
    found = _tables(path)
    if path.name != PYPROJECT:
        return found
    if (own := _own(found)) is None:
        raise UsageError("OP612", "the file has no table [tool.onnxprune]", where=str(path))
    return {"recipe": FORMAT, **own}


def _own(pyproject: Mapping[str, Any]) -> dict[str, Any] | None:
    tools = pyproject.get("tool")
    own = tools.get("onnxprune") if isinstance(tools, dict) else None
    return own if isinstance(own, dict) else None


def _tables(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LARGEST:
            raise UsageError("OP612", "the file is too large for a recipe", where=str(path))
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        cause = f"the recipe can't be read: {getattr(error, 'strerror', None) or error}"
        raise UsageError("OP612", cause, where=str(path)) from error


def _check_names(document: Mapping[str, Any], path: Path) -> None:
    """Refuse unknown tables, and unknown keys of those that aren't settings."""
    for table, content in document.items():
        names: Sequence[str] = tuple(TABLES)
        unknown = [] if table in TABLES else [table]
        if (keys := TABLES.get(table)) is not None and isinstance(content, dict):
            names, unknown = keys, [key for key in content if key not in keys]
        elif not unknown and table != "recipe" and not isinstance(content, dict):
            raise UsageError("OP612", f"{table} is no table", where=str(path))
        elif table in TABLES and isinstance(content, dict) and "data" in content:
            hint = "write it to a table of its own: [data], path = ..."
            raise UsageError("OP612", f"the table {table} names data", where=str(path), hint=hint)
        if unknown:
            hint = did_you_mean(unknown[0], names) or f"there are {', '.join(names)}"
            raise UsageError("OP612", f"the recipe has an unknown key {unknown[0]!r}", where=str(path), hint=hint)


def _file(recipe: Path, name: str, table: Mapping[str, Any]) -> str | None:
    """Return the path that a table names; data may be missing."""
    found, needed = table.get("path"), name != "data"
    if found is None and not needed:
        return None
    if not isinstance(found, str):
        hint = f'add {name} = "FILE"'
        raise UsageError("OP612", f"the recipe doesn't name the file of {name!r}", where=str(recipe), hint=hint)
    return str(recipe.parent / found) if needed else _there(recipe, found)


def _there(recipe: Path, file: str) -> str:
    """Return a path as a recipe means it; what isn't there is no path but a name."""
    return str(recipe.parent / file) if (recipe.parent / file).exists() else file


def _named(table: Mapping[str, Any], name: Callable[[str], str]) -> dict[str, Any]:
    """Return a table whose files have other names; a plan may be the text of one."""
    files = {key: table[key] for key in _PATHS if isinstance(table.get(key), str) and not _is_plan(table[key])}
    return {**table, **{key: name(file) for key, file in files.items()}}


def _is_plan(value: Any) -> bool:
    return isinstance(value, str) and value.lstrip().startswith("{")


def _relative(file: Any, recipe: Path) -> str:
    """Return a path as seen from a recipe; what isn't there is no path but a name."""
    if not Path(file).exists():
        return str(file)
    return Path(os.path.relpath(Path(file).absolute(), recipe.absolute().parent)).as_posix()


def _listed(value: Any) -> Any:
    """Return a document without tuples, None and paths, which TOML doesn't have."""
    if isinstance(value, Mapping):
        return {str(k): _listed(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [_listed(v) for v in value]
    return str(value) if isinstance(value, Path) else value
