"""What `help` says of the public names is enough to use them: arguments, units, what is raised, an example that runs.

The names are found, not listed: a new one is held to the same.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import re
from pathlib import Path
from typing import Any, Dict, Iterator, List, Set, Tuple

import pytest

import nodeipc

from .test_readme import BLOCKS

ROOT = Path(__file__).parent.parent

# Whose members are public, and how the examples call one of them. What is called anything else is a client.
RECEIVERS = {
    'ipc': nodeipc.IPC,
    'server': nodeipc.Server,
    'socket': nodeipc.Socket,
    'config': nodeipc.Config,
    'event': nodeipc.Event,
    'events': nodeipc.EventIterator,
}
CLASSES = (*RECEIVERS.values(), nodeipc.Client)

# What ends a wait, in the documentation of whatever has a timeout.
ENDINGS = 'EmitTimeout|RequestTimeout|False|are cut|is cut|within `timeout`'


def members(cls: Any) -> Iterator[Tuple[str, Any]]:
    """Public methods and properties, those of private bases too."""
    for name in dir(cls):
        value = inspect.getattr_static(cls, name)
        is_ours = any(name in vars(base) for base in cls.__mro__ if base.__module__.startswith('nodeipc'))
        if is_ours and not name.startswith('_') and (inspect.isroutine(value) or isinstance(value, property)):
            yield name, value


def attributes(cls: Any) -> Set[str]:
    """Names of public attributes that are no methods or properties: values that `help` of the class has to tell of."""
    names = {name for base in cls.__mro__ for name in getattr(base, '__slots__', ())}
    names.update(getattr(cls, '_fields', ()))  # of a named tuple
    for base in cls.__mro__:
        if base.__module__.startswith('nodeipc'):
            for node in ast.walk(ast.parse(inspect.getsource(base))):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                    names.add(node.attr if getattr(node.value, 'id', '') == 'self' else '')
    return {name for name in names if name and not name.startswith('_')} - {name for name, _ in members(cls)}


FUNCTIONS: Dict[str, Any] = {
    **{name: getattr(nodeipc, name) for name in nodeipc.__all__ if inspect.isfunction(getattr(nodeipc, name))},
    **{f'{cls.__name__}.{name}': value for cls in CLASSES for name, value in members(cls)},
}

PUBLIC = [*nodeipc.__all__, *FUNCTIONS]


def documentation(name: str) -> str:
    """What `help` says of a public name: of the package, or of a class in it."""
    value: Any = nodeipc
    for part in name.split('.'):
        value = getattr(value, part)
    return ' '.join((inspect.getdoc(value) or '').split())


def told_of(name: str) -> str:
    """The same, and that of the one that it refers to for what they have in common: "As `connect_to`, over TCP"."""
    told = documentation(name)
    other = re.search(r'\b[Aa]s `([\w.]+)`', told)
    if other is None:
        return told
    where = name.rpartition('.')[0]
    return f'{told} {documentation(other[1] if "." in other[1] or not where else f"{where}.{other[1]}")}'


def parameters(function: Any) -> List[str]:
    if isinstance(function, property):
        return []
    found = inspect.signature(function).parameters.values()
    return [parameter.name for parameter in found if parameter.name != 'self']


def test_help_says_something_of_every_public_name() -> None:
    assert not [name for name in PUBLIC if not documentation(name)]


def test_help_of_a_function_tells_of_each_argument() -> None:
    untold = {
        f'{name}: {parameter}'
        for name, function in FUNCTIONS.items()
        for parameter in parameters(function)
        if not re.search(rf'\b{parameter}\b', told_of(name))
    }
    assert not untold


def test_help_of_what_has_a_timeout_tells_its_unit_and_what_happens_then() -> None:
    with_timeout = [name for name, function in FUNCTIONS.items() if 'timeout' in parameters(function)]
    assert len(with_timeout) > 10
    for name in with_timeout:
        assert 'seconds' in told_of(name), name
        assert re.search(ENDINGS, told_of(name)), name


def test_help_of_a_class_tells_of_its_attributes() -> None:
    untold = {
        f'{cls.__name__}: {name}'
        for cls in CLASSES
        for name in attributes(cls)
        if not re.search(rf'\b{name}\b', documentation(cls.__name__))
    }
    assert not untold


@pytest.mark.parametrize('name', ['connect', 'serve'])
def test_help_of_the_one_liners_is_all_that_a_script_needs(name: str) -> None:
    told = documentation(name)
    forms = ['an id', 'a path', 'unix:', 'tcp://', 'tls://', 'udp://']
    for form in forms if name == 'connect' else ['that `connect` takes']:
        assert form in told
    for what in ('fields of `Config`', '``with``', 'Raises `ConfigError`', 'OSError', '>>> '):
        assert what in told


# Examples


def examples() -> Iterator[str]:
    """The source of all that runs: doctests of the package, blocks of the README, and the example scripts."""
    for path in (ROOT / 'nodeipc').glob('*.py'):
        if path.stem != '__main__':
            for found in doctest.DocTestFinder().find(importlib.import_module(f'nodeipc.{path.stem}')):
                yield ''.join(example.source for example in found.examples)
    for block in BLOCKS:
        if block.language == 'python':
            yield block.text
    for path in (ROOT / 'examples').glob('*/*.py'):
        yield path.read_text('utf-8')


def names_used(source: str) -> Iterator[str]:
    """The public names in an example: ``connect``, ``Client.request`` … By habit variables are called as in RECEIVERS."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.alias):
            yield node.name
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            receiver = node.value
            called = receiver.id if isinstance(receiver, ast.Name) else getattr(receiver, 'attr', '')
            yield node.attr if called == 'nodeipc' else f'{RECEIVERS.get(called, nodeipc.Client).__name__}.{node.attr}'


def test_every_public_name_has_an_example_that_runs() -> None:
    used = {name for source in examples() for name in names_used(source)}
    without = set()
    for name in PUBLIC:
        same = {other for other, function in FUNCTIONS.items() if function is FUNCTIONS.get(name)}  # inherited from one base
        if not used & {name, *same} and '>>> ' not in documentation(name):
            without.add(name)
    assert not without


def test_help_itself_shows_how_scripts_are_written() -> None:
    of_clients = ['request', 'call', 'notify', 'wait_for', 'events', 'wait', 'batch']
    names = ['connect', 'serve', 'Server.events', 'Server.method', 'Server.wait', *(f'Client.{name}' for name in of_clients)]
    assert not [name for name in [*names, *(cls.__name__ for cls in CLASSES)] if '>>> ' not in documentation(name)]
