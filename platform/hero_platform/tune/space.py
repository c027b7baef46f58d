"""Search spaces as typed values: which settings of a run vary, and over what (design D10).

A space maps names to what is searched. A name is usually a path of the run's config, such as `optim.lr`, where part of
the mixture may be named by its task (`mixture.vsm.task.margin`) or its place (`mixture.0.weight`). Settings that do not
map to one field (`Derived`) and alternatives with settings of their own (`Variants`) have names of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal, Protocol, get_args, get_origin, get_type_hints

from hero_platform.config import RunConfig

Scalar = float | int | str | bool


@dataclass(frozen=True)
class Float:
    """A number between two, both included; `log` draws its logarithm evenly."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Int:
    """A whole number between two, both included, every `step`."""

    low: int
    high: int
    log: bool = False
    step: int = 1


@dataclass(frozen=True)
class Choice:
    """One of several values, without an order."""

    options: tuple[Scalar, ...]


Distribution = Float | Int | Choice


@dataclass(frozen=True)
class Derived:
    """A value from which a config is made: `make(config, value)`, for what is not one field."""

    over: Distribution
    make: Callable[[RunConfig, Any], RunConfig]


@dataclass(frozen=True)
class Variant:
    """One alternative: a change of the config, and what is searched only when it is chosen."""

    make: Callable[[RunConfig], RunConfig] = lambda config: config
    searched: Mapping[str, Searched] = field(default_factory=dict)


@dataclass(frozen=True)
class Variants:
    """Alternatives by name."""

    options: Mapping[str, Variant]


Searched = Distribution | Derived | Variants


@dataclass(frozen=True)
class Space:
    """What a sweep searches."""

    name: str
    searched: Mapping[str, Searched]


class Suggest(Protocol):
    """Chooses a value for a name."""

    def __call__(self, name: str, over: Distribution) -> Any:
        """The value of `name`."""


def draw(space: Space, suggest: Suggest) -> dict[str, Any]:
    """The values of one trial by name; what belongs to a variant is `<name>=<variant>/<name inside>`."""
    return dict(_draw(space.searched, suggest, ""))


def _draw(searched: Mapping[str, Searched], suggest: Suggest, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, what in searched.items():
        chosen = suggest(prefix + name, _distribution(what))
        yield prefix + name, chosen
        if isinstance(what, Variants):
            yield from _draw(what.options[chosen].searched, suggest, f"{prefix}{name}={chosen}/")


def _distribution(what: Searched) -> Distribution:
    if isinstance(what, Variants):
        return Choice(tuple(what.options))
    return what.over if isinstance(what, Derived) else what


def apply(space: Space, config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """The run of one trial.

    Raises:
        ValueError: the values do not go together, or do not fit the config.
    """
    return _apply(space.searched, config, values, "")


def _apply(searched: Mapping[str, Searched], config: RunConfig, values: Mapping[str, Any], prefix: str) -> RunConfig:
    for name, what in searched.items():
        value = values[prefix + name]
        if isinstance(what, Variants):
            chosen = what.options[value]
            config = _apply(chosen.searched, chosen.make(config), values, f"{prefix}{name}={value}/")
        elif isinstance(what, Derived):
            config = what.make(config, value)
        else:
            config = with_value(config, name, value)
    return config


def check(space: Space, config: RunConfig) -> None:
    """Try the ends of every distribution and every alternative on a recipe.

    Raises:
        ValueError: a path is not there, a value is of another type or cannot be; the space and the path are named.
    """
    if not space.searched:
        raise ValueError(f"space {space.name} has nothing to search in recipe {config.recipe}: choose another --space")
    for _ in tried(space, config):
        pass


def tried(space: Space, config: RunConfig) -> Iterator[tuple[str, Distribution, RunConfig, RunConfig]]:
    """The ends of every distribution and every alternative: where, over what, the config before and after.

    Raises as `check` does.
    """
    yield from _tried(space.searched, config, f"space {space.name}")


def _tried(
    searched: Mapping[str, Searched], config: RunConfig, where: str
) -> Iterator[tuple[str, Distribution, RunConfig, RunConfig]]:
    for name, what in searched.items():
        place = f"{where}: {name}"
        over = _distribution(what)
        ends = over.options if isinstance(over, Choice) else (over.low, over.high)
        if not ends:
            raise ValueError(f"{place} has no value to choose from")
        if not isinstance(over, Choice) and (over.low > over.high or (over.log and over.low <= 0)):
            raise ValueError(f"{place} cannot be drawn from {over.low} to {over.high}{', log' if over.log else ''}")
        for value in ends:
            try:
                if isinstance(what, Variants):
                    changed = what.options[str(value)].make(config)
                elif isinstance(what, Derived):
                    changed = what.make(config, value)
                else:
                    changed = with_value(config, name, value)
            except ValueError as error:
                raise ValueError(f"{place} = {value}: {error}") from error
            yield f"{place} = {value}", over, config, changed
            if isinstance(what, Variants):
                yield from _tried(what.options[str(value)].searched, changed, f"{place}={value}")


def combinations(space: Space) -> list[dict[str, Any]]:
    """Every trial of a space that has only choices, in order: the last name changes fastest.

    Raises:
        ValueError: a distribution has no end of values.
    """
    return list(_combinations(list(space.searched.items()), "", space.name))


def _combinations(searched: list[tuple[str, Searched]], prefix: str, space: str) -> Iterator[dict[str, Any]]:
    if not searched:
        yield {}
        return
    (name, what), rest = searched[0], searched[1:]
    over = _distribution(what)
    if not isinstance(over, Choice):
        raise ValueError(f"space {space} is no grid: {prefix}{name} is drawn from a range, not chosen from a list")
    for value in over.options:
        inner: list[dict[str, Any]] = [{}]
        if isinstance(what, Variants):
            below = list(what.options[str(value)].searched.items())
            inner = list(_combinations(below, f"{prefix}{name}={value}/", space))
        for nested in inner:
            for others in _combinations(rest, prefix, space):
                yield {prefix + name: value, **nested, **others}


def described(space: Space) -> dict[str, Any]:
    """A space as plain data: two of the same description search the same."""
    return {"name": space.name, "searched": _described(space.searched)}


def _described(searched: Mapping[str, Searched]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, what in searched.items():
        if isinstance(what, Variants):
            found[name] = {option: _described(variant.searched) for option, variant in what.options.items()}
        else:
            over = _distribution(what)
            found[name] = {type(over).__name__: {each.name: getattr(over, each.name) for each in fields(over)}}
    return found


def with_value(config: Any, path: str, value: Scalar) -> Any:
    """A config with one field changed.

    Raises:
        ValueError: there is no such field (with the nearest name), or the value is not of its type.
    """
    name, _, rest = path.partition(".")
    if isinstance(config, tuple):
        return _with_items(config, name, rest, value)
    names = [each.name for each in fields(config)] if is_dataclass(config) else []
    if name not in names:
        near = get_close_matches(name, names, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"there is no field {name!r} in {type(config).__name__}{hint}")
    old = getattr(config, name)
    if rest:
        return replace(config, **{name: with_value(old, rest, value)})
    if is_dataclass(old) or isinstance(old, tuple):
        raise ValueError(f"{name} is a group of fields: name one of them")
    return replace(config, **{name: _typed(get_type_hints(type(config))[name], name, value)})


def _with_items(items: tuple[Any, ...], name: str, rest: str, value: Scalar) -> tuple[Any, ...]:
    """Items of the mixture by place, or by the kind of their task."""
    kinds = [getattr(getattr(item, "task", None), "kind", "") for item in items]
    chosen = {int(name)} if name.isdigit() else {i for i, kind in enumerate(kinds) if kind == name}
    if not chosen or max(chosen) >= len(items):
        raise ValueError(f"the mixture has no entry {name!r}: it has {', '.join(kinds)}")
    if not rest:
        raise ValueError(f"entry {name!r} is a group of fields: name one of them")
    return tuple(with_value(item, rest, value) if i in chosen else item for i, item in enumerate(items))


def _typed(hint: Any, name: str, value: Scalar) -> Scalar:
    """The value as its field has it; a whole number is a float where one belongs."""
    options = get_args(hint) if get_origin(hint) is Literal else ()
    if options:
        if value in options:
            return value
        raise ValueError(f"{name} is one of {', '.join(map(repr, options))}, not {value!r}")
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    raise ValueError(f"{name} takes {getattr(hint, '__name__', hint)}, not {value!r}")
