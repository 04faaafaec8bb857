"""One checked `ExperimentConfig` from gin files and the command line.

A gin file binds the parameters of `model`, `data`, `optimizer`, `training` and `mesh`:

    include "sizes/paper.gin"         # relative to the folder gin/; includes come first
    WINDOW = 512                      # a macro, read as %WINDOW
    model.window = %WINDOW

The command line takes `--gin_file=FILE`, relative to the current directory or else to the folder
gin/, and `--gin.NAME=VALUE`, NAME a parameter or a macro; both may be repeated. A file wins over
what it includes, a later file over an earlier one, and `--gin.NAME=VALUE` over every file.

`model.architecture` chooses the class that the section `model` configures, `optimizer.name` that of
`optimizer`. A parameter that the chosen class does not have is ignored if another file binds it, so
that files of sizes serve all architectures. It is an error in the file that chooses, and on the
command line.

VALUE is read as in a gin file. A VALUE that gin cannot read and that starts with none of
`" ' ( [ { % @` is a string: `--gin.data.path=/my/books`.

Only gin's parser is used, never its global registry, so a call does not affect the next.
"""

import dataclasses
import inspect
import logging
import os
import re
import textwrap
import tokenize
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gin import config_parser

from block_recurrent.config import WITHOUT_PATH, ConfigError, DataConfig, ExperimentConfig
from block_recurrent.system.hints import must_be_one_of, type_name
from block_recurrent.system.text import did_you_mean

_log = logging.getLogger(__name__)
TO_BE_GIVEN = "(to be given)"
FLAG = "--gin."
# Installed, the experiment files are inside the package; in the repository they are beside it.
_INSTALLED = Path(__file__).resolve().parent / "gin"
GIN_FOLDER = _INSTALLED if _INSTALLED.is_dir() else _INSTALLED.parents[1] / "gin"
# The classes that may configure a section.
SECTIONS: dict[str, tuple[Any, ...]] = {
    section: typing.get_args(hint) or (hint,)
    for section, hint in typing.get_type_hints(ExperimentConfig).items()
}
# The parameter that chooses among several, and each class by its value; the first is the default.
CHOICES: dict[str, tuple[str, dict[str, Any]]] = {
    section: (f"{section}.{field}", {getattr(kind, field): kind for kind in SECTIONS[section]})
    for section, field in (("model", "architecture"), ("optimizer", "name"))
}
PARAMETERS: dict[str, Any] = {  # with their types
    f"{section}.{name}": hint
    for section, kinds in SECTIONS.items()
    for kind in kinds
    for name, hint in typing.get_type_hints(kind).items()
}
_PATHS = ("data.path", "data.vocab_path", "data.cache_path", "training.initial_parameters")


@dataclasses.dataclass(frozen=True)
class _Macro:
    name: str


@dataclasses.dataclass(frozen=True)
class _Reference:
    name: str


class _Binding(NamedTuple):
    value: Any
    where: str


class _Delegate(config_parser.ParserDelegate):
    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> Any:
        return _Reference(scoped_configurable_name)

    def macro(self, macro_name: str) -> Any:
        return _Macro(macro_name)


def _read(text: str, where: Callable[[int], str]) -> list[Any]:
    """The statements of gin text; raises ConfigError at `where(line)`."""
    try:
        return list(config_parser.ConfigParser(text, _Delegate()))
    except tokenize.TokenError as error:
        message, (line, _) = error.args
        raise ConfigError(f"{where(line)}: {message}") from error
    except SyntaxError as error:
        message = error.msg.splitlines()[-1].strip().rstrip(".")
        if message.startswith("Failed to parse token"):
            message += "; a string needs quotes"
        raise ConfigError(f"{where(error.lineno or 1)}: {message}") from error
    except RecursionError as error:
        raise ConfigError(f"{where(1)}: brackets are nested too deeply") from error


def _read_flag(name: str, text: str) -> config_parser.BindingStatement:
    """The binding of a flag; a number is text where only text is taken, as of a folder 2023."""
    try:
        statements = _read(f"{name} = {text}", lambda line: f"--gin.{name}")
        is_text = PARAMETERS.get(name) in (str, str | None)
        if len(statements) == 1 and not (is_text and isinstance(statements[0].value, (int, float))):
            return statements[0]
    except ConfigError:
        if text[0] in "\"'([{%@":
            raise
    return _read(f"{name} = {text!r}", lambda line: f"--gin.{name}")[0]


def _find(name: str, folders: Sequence[Path], where: str) -> Path:
    for folder in folders:
        if os.path.isfile(folder / name):  # also of names that no file can have
            return folder / name
    known = [str(path.relative_to(GIN_FOLDER)) for path in GIN_FOLDER.rglob("*.gin")]
    if os.path.isdir(Path(name).parent):
        known += [str(path) for path in Path(name).parent.glob("*.gin")]
    raise ConfigError(f"{where}: there is no file {name!r}{did_you_mean(name, known)}")


def _shown(path: Path) -> str:
    root = GIN_FOLDER.parent
    return str(path.relative_to(root) if path.is_relative_to(root) else path)


def _macros_in(value: Any) -> Iterator[str]:
    if isinstance(value, _Macro):
        yield value.name
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _macros_in(item)


def _parameters_called(name: str) -> list[str]:
    """The parameters of a name, in any section."""
    return [known for known in PARAMETERS if known.partition(".")[2] == name]


def _nearest_parameter(name: str) -> str:
    same = _parameters_called(name.rpartition(".")[2])
    return did_you_mean(name, same) or did_you_mean(name, PARAMETERS)


class _Bindings:
    """Everything bound so far: a later binding replaces an earlier one."""

    def __init__(self) -> None:
        self.parameters: dict[str, _Binding] = {}
        self.macros: dict[str, _Binding] = {}
        self.macro_uses: dict[str, str] = {}

    def add_file(self, path: Path, parents: tuple[Path, ...] = ()) -> None:
        """Adds the bindings of a file and of the files that it includes."""
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{_shown(path)}: cannot be read as UTF-8 text: {error}") from error
        self.add_text(text, _shown(path), (*parents, path.resolve()))

    def add_text(self, text: str, source: str, parents: tuple[Path, ...] = ()) -> None:
        """Adds the bindings of gin text, whose `source` messages name, as `add_file` does."""

        def where(line: int) -> str:
            return f"{source}:{line}"

        seen: dict[str, str] = {}
        for statement in _read(text, where):
            place = where(statement.location.line_num)
            if isinstance(statement, config_parser.IncludeStatement):
                if seen:
                    raise ConfigError(
                        f"{place}: includes come before bindings, or they would override them"
                    )
                included = _find(statement.filename, [GIN_FOLDER], place)
                if included.resolve() in parents:
                    raise ConfigError(f"{place}: {statement.filename!r} includes itself")
                self.add_file(included, parents)
            elif isinstance(statement, config_parser.ImportStatement):
                raise ConfigError(f"{place}: imports have no meaning here")
            elif isinstance(statement, config_parser.BindingStatement):
                self._add(statement, place, seen)

    def add_flags(self, flags: Sequence[str]) -> None:
        """Adds the bindings of the command line, NAME=VALUE each."""
        seen: dict[str, str] = {}
        for flag in flags:
            match = re.fullmatch(r"([A-Za-z_][\w.]*)=(.+)", flag, re.DOTALL)
            if match is None:
                raise ConfigError(
                    f"--gin.{flag}: write --gin.NAME=VALUE, for example --gin.model.window=128"
                )
            name, text = match.groups()
            self._add(_read_flag(name, text), f"{FLAG}{name}", seen)

    def _add(
        self, statement: config_parser.BindingStatement, where: str, seen: dict[str, str]
    ) -> None:
        name = ".".join(filter(None, (statement.selector, statement.arg_name)))
        if statement.scope:
            raise ConfigError(f"{where}: scopes have no meaning here; write {name!r}")
        if isinstance(statement.value, _Reference):
            raise ConfigError(f"{where}: references (@{statement.value.name}) have no meaning here")
        if "." in name and name not in PARAMETERS:
            raise ConfigError(f"{where}: unknown parameter {name!r}{_nearest_parameter(name)}")
        if name in seen and where.startswith(FLAG):
            _log.warning("%s is given several times: the last counts", where)
        elif name in seen:
            raise ConfigError(f"{where}: {name} is bound twice, first at {seen[name]}")
        seen[name] = where
        target = self.parameters if name in PARAMETERS else self.macros
        target[name] = _Binding(statement.value, where)
        for macro in _macros_in(statement.value):
            self.macro_uses.setdefault(macro, where)

    def check(self) -> None:
        """Raises ConfigError for undefined and unused macros and missing parameters."""
        for name, where in self.macro_uses.items():
            if name not in self.macros:
                nearest = did_you_mean(name, self.macros)
                raise ConfigError(f"{where}: macro %{name} is not defined{nearest}")
        for name, binding in self.macros.items():
            if name not in self.macro_uses:
                raise ConfigError(f"{binding.where}: {self._unused(name)}")
        for section in SECTIONS:
            for field in dataclasses.fields(self.kind(section)):
                name = f"{section}.{field.name}"
                if field.default is dataclasses.MISSING and name not in self.parameters:
                    raise ConfigError(f"{name} is not set: give a --gin_file or --gin.{name}=VALUE")

    def kind(self, section: str) -> Any:
        """The class that configures a section."""
        parameter, kinds = CHOICES.get(section, ("", {}))
        if parameter not in self.parameters:
            return SECTIONS[section][0]
        value, where = self.parameters[parameter]
        name = self._replace_macros(value)
        if not isinstance(name, str) or name not in kinds:
            raise ConfigError(f"{where}: {parameter} {must_be_one_of(kinds, name)}")
        return kinds[name]

    def _unused(self, macro: str) -> str:
        """Why a name without a section has no effect, and the nearest name that has one."""
        if same := _parameters_called(macro):
            meant = " or ".join(map(repr, same))
            return f"there is no parameter or macro {macro!r} in use (did you mean {meant}?)"
        nearest = did_you_mean(macro, self.macro_uses) or _nearest_parameter(macro)
        return f"nothing uses the macro {macro!r}{nearest}"

    def values(self, section: str) -> dict[str, Any]:
        """The values bound in a section, by field, macros replaced.

        Raises:
          ConfigError: a parameter that the section's class does not have is bound by a flag, or in
            the file that chooses the class.
        """
        known, values = {field.name for field in dataclasses.fields(self.kind(section))}, {}
        for name, (value, where) in self.parameters.items():
            owner, _, field = name.partition(".")
            if owner == section and field in known:
                values[field] = self._replace_macros(value)
            elif owner == section:
                self._check_left_out(section, name, where)
        return values

    def _check_left_out(self, section: str, name: str, where: str) -> None:
        """Raises ConfigError unless another file than the one that chose the class binds `name`."""
        parameter, kinds = CHOICES[section]
        if parameter not in self.parameters:
            needed = [value for value, kind in kinds.items() if hasattr(kind, name.split(".")[1])]
            raise ConfigError(
                f"{where}: {name} needs {parameter} = {' or '.join(map(repr, needed))}"
            )
        value, chosen = self.parameters[parameter]
        same_file = where.rpartition(":")[0] == chosen.rpartition(":")[0]
        if where.startswith(FLAG) or same_file:
            value = self._replace_macros(value)
            raise ConfigError(
                f"{where}: with {parameter} = {value!r}, set at {chosen}, there is no {name}"
            )

    def _replace_macros(self, value: Any, within: tuple[str, ...] = ()) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(self._replace_macros(item, within) for item in value)
        if not isinstance(value, _Macro):
            return value
        if value.name in within:
            raise ConfigError(f"{self.macros[value.name].where}: {value.name} refers to itself")
        return self._replace_macros(self.macros[value.name].value, (*within, value.name))

    def build(self, kind: Any, values: dict[str, Any], section: str = "") -> Any:
        """A configuration; raises ConfigError that says where wrong values were bound."""
        try:
            return kind(**values)
        except (TypeError, ValueError) as error:
            sentence = str(error).removeprefix("ExperimentConfig: ")
            sentence = sentence.replace(kind.__name__, section)
            places = ", ".join(self._places(sentence, f"{section}." if section else ""))
            raise ConfigError(f"{places}: {sentence}" if places else sentence) from error

    def _places(self, sentence: str, prefix: str) -> dict[str, None]:
        """Where the parameters that a message mentions, also as `recurrent layer`, were bound."""
        places = {}
        for name, (value, where) in self.parameters.items():
            words = name.removeprefix(prefix).removesuffix("s").replace("_", "[_ ]")
            if name.startswith(prefix) and re.search(rf"\b{words}s?\b", sentence):
                places[where] = None
                places.update((self.macros[macro].where, None) for macro in _macros_in(value))
        return places


def load(
    files: Sequence[str | Path], bindings: Sequence[str] = (), *, needs_data: bool = True
) -> ExperimentConfig:
    """The experiment that gin files, in order, and then bindings `NAME=VALUE` describe.

    Args:
      files: paths relative to the current directory, or else to the folder gin/ or its parent.
      bindings: `NAME=VALUE`, as they follow `--gin.` on the command line.
      needs_data: whether the paths of data must be bound; else those missing are `TO_BE_GIVEN`.

    Raises:
      ConfigError: a file or a binding is wrong; the message has file and line, or the flag, and the
        nearest valid name.
    """
    bound = _Bindings()
    for file in files:
        folders = [Path(), GIN_FOLDER, GIN_FOLDER.parent]
        bound.add_file(_find(os.path.expanduser(str(file)), folders, f"--gin_file={file}"))
    bound.add_flags(bindings)
    return _experiment(bound, needs_data)


def load_text(text: str, source: str) -> ExperimentConfig:
    """The experiment that gin text describes, for instance that of `to_gin`.

    Args:
      text: the content of a gin file.
      source: what messages call it.

    Raises: as `load`.
    """
    bound = _Bindings()
    bound.add_text(text, source)
    return _experiment(bound)


def _experiment(bound: _Bindings, needs_data: bool = True) -> ExperimentConfig:
    bound.check()
    values = {name: bound.values(name) for name in SECTIONS}
    for section, _, name in (path.partition(".") for path in _PATHS):
        if isinstance(path := values[section].get(name), str):
            values[section][name] = os.path.expanduser(path)
    if not needs_data:
        data = values["data"]
        missing = [] if data.get("source", DataConfig.source) in WITHOUT_PATH else ["path"]
        missing += ["vocab_path"] if data.get("tokenizer", DataConfig.tokenizer) != "bytes" else []
        values["data"] = dict.fromkeys(missing, TO_BE_GIVEN) | data
    sections = {name: bound.build(bound.kind(name), values[name], name) for name in SECTIONS}
    return bound.build(ExperimentConfig, sections)


def describe_parameters() -> str:
    """Every parameter with its type, its default value and its meaning, for people."""
    lines, seen = [], set()
    for section, kinds in SECTIONS.items():
        for kind in kinds:
            hints, meanings = typing.get_type_hints(kind), _meanings(kind)
            for field in dataclasses.fields(kind):
                name, required = f"{section}.{field.name}", field.default is dataclasses.MISSING
                if name not in seen:
                    seen.add(name)
                    default = "required" if required else f"default {field.default!r}"
                    lines.append(f"{name}: {type_name(hints[field.name])}, {default}")
                    lines.append(textwrap.indent(textwrap.fill(meanings[field.name], 76), "    "))
    return "\n".join(lines)


def _meanings(kind: type) -> dict[str, str]:
    """What the docstrings of a class and its bases say of each of its attributes."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        # Python 3.13 leaves the indentation out of docstrings itself.
        attributes = inspect.cleandoc(base.__doc__ or "").partition("Attributes:")[2]
        pattern = re.compile(r"^ {2}(\w+): (.*(?:\n {4,}.*)*)", re.MULTILINE)
        found.update((name, " ".join(text.split())) for name, text in pattern.findall(attributes))
    return found


def parameter_values(experiment: ExperimentConfig) -> dict[str, Any]:
    """The value of every parameter, defaults included, by names such as "model.window"."""
    return {
        f"{section}.{name}": value
        for section, config in vars(experiment).items()
        for name, value in vars(config).items()
    }


def to_gin(experiment: ExperimentConfig) -> str:
    """Every value, defaults included, as gin text from which `load` makes an equal object."""
    return "\n".join(
        "".join(f"{section}.{name} = {value!r}\n" for name, value in vars(config).items())
        for section, config in vars(experiment).items()
    )
