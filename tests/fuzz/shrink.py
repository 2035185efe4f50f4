"""Makes what fails as small as it stays failing, and a test case of it to paste into a file of tests."""

from __future__ import annotations

from typing import Any, Callable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from .reference import Settings, Verdict

# How often a failing input is tried again, smaller: seconds, for the inputs that corpus makes.
_BUDGET = 20_000


class Defect(NamedTuple):
    """What nodeipc does otherwise than the reference says."""

    what: str
    test: str  # a test case that fails


class _Tries:
    def __init__(self, fails: Callable[[Any], bool], budget: int) -> None:
        self._fails = fails
        self._left = budget

    def __call__(self, candidate: Any) -> bool:
        self._left -= 1
        return self._left >= 0 and self._fails(candidate)


def delete(items: Sequence[Any], fails: Callable[[Sequence[Any]], bool], budget: int = _BUDGET) -> Sequence[Any]:
    """Delete what can be deleted of a sequence that fails: halves of it, then smaller parts, then single items.

    >>> delete('the quick brown fox', lambda text: 'q' in text and 'x' in text)
    'qx'
    """
    return _delete(items, _Tries(fails, budget))


def _delete(items: Sequence[Any], fails: Callable[[Sequence[Any]], bool]) -> Sequence[Any]:
    size = len(items)
    while size:
        at = 0
        while at < len(items):
            without = items[:at] + items[at + size :]  # type: ignore[operator]
            if fails(without):
                items = without
            else:
                at += size
        size //= 2
    return items


def chunks(parts: Sequence[bytes], fails: Callable[[Sequence[bytes]], bool]) -> List[bytes]:
    """Return chunks that fail: fewer ones, joined where it does not matter where they are cut, of fewer bytes.

    >>> chunks([b'some', b'thing', b'else', b''], lambda parts: b'h' in b''.join(parts) and len(parts) > 1)
    [b'', b'h']
    """
    tries = _Tries(fails, _BUDGET)
    parts = list(parts)
    before = None
    while before != parts:
        before = parts
        parts = list(_delete(parts, tries))
        index = 0
        while index + 1 < len(parts):
            joined = [*parts[:index], parts[index] + parts[index + 1], *parts[index + 2 :]]
            if tries(joined):
                parts = joined
            else:
                index += 1
        for index in range(len(parts)):
            parts[index] = bytes(
                _delete(parts[index], lambda part, i=index: tries([*parts[:i], part, *parts[i + 1 :]]))  # noqa: B023
            )
    return parts


def event(name: Any, data: Any, fails: Callable[[Tuple[Any, Any]], bool]) -> Tuple[Any, Any]:
    """Return a type and data that fail, and are smaller.

    >>> event('name', [1, {'a': 'wrong', 'b': 2}], lambda pair: 'wrong' in str(pair[1]))
    ('x', 'wrong')
    """
    tries = _Tries(fails, _BUDGET)
    if name != 'x' and tries(('x', data)):
        name = 'x'
    smaller = True
    while smaller:
        smaller = False
        for candidate in _parts(data):
            if tries((name, candidate)):
                data, smaller = candidate, True
                break
    return name, data


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, str):
        if value:
            yield ''
        half = len(value) // 2
        while half:
            for at in range(0, len(value), half):
                yield value[:at] + value[at + half :]
            half //= 2
    elif isinstance(value, (list, tuple)):
        yield from value
        for index in range(len(value)):
            yield value[:index] + value[index + 1 :]
        for index, item in enumerate(value):
            for part in _parts(item):
                yield type(value)([*value[:index], part, *value[index + 1 :]])
    elif isinstance(value, dict):
        yield from value.values()
        for key, item in value.items():
            yield {other: value[other] for other in value if other is not key}
            for part in _parts(item):
                yield {**value, key: part}


def excerpt(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 300 else f'{text[:300]}... ({len(text)} characters)'


# Test cases. Values are compared by their repr, which tells 1, 1.0 and True apart, and surrogates are written as escapes.


def stream_test(seed: Any, settings: Settings, parts: Sequence[bytes], verdict: Verdict, most: Optional[int]) -> str:
    bounded = f'\n            assert len(decoder._partial) <= {most}' if most is not None else ''
    return (
        _head(seed, 'decoder', settings)
        + f"""\
    decoder = make_parser({_config(settings)}).decoder()
    events, code = [], None
    try:
        for chunk in {_chunk_list(parts)}:
            events.extend(decoder.feed(chunk)){bounded}
    except ProtocolError as error:
        code = error.code
    assert repr(events) == {repr(verdict.events)!a}
    assert code in {_codes(verdict)}
"""
    )


def datagram_test(seed: Any, settings: Settings, datagram: bytes, verdict: Verdict) -> str:
    return (
        _head(seed, 'datagram', settings)
        + f"""\
    events, code = [], None
    try:
        events = make_parser({_config(settings)}).decode_datagram({_bytes(datagram)})
    except ProtocolError as error:
        code = error.code
    assert repr(events) == {repr(verdict.events if None in verdict.codes else [])!a}
    assert code in {_codes(verdict)}
"""
    )


def event_test(seed: Any, settings: Settings, name: Any, data: Any, wanted: Any) -> str:
    return (
        _head(seed, 'encoder', settings)
        + f"""\
    from math import inf, nan  # noqa: F401

    try:
        outcome = make_parser({_config(settings)}).encode({name!a}, {data!a})
    except ProtocolError as error:
        outcome = error.code
    except Exception as error:
        outcome = error.__class__.__name__
    assert outcome == {wanted!a}
"""
    )


def round_test(kind: str, profile: str, seed: Any, connections: List[int]) -> str:
    return f"""\
def test_fuzz_{_words(kind)}_{profile}_{_words(seed)}() -> None:
    from tests.fuzz.live import run_round

    assert run_round({kind!r}, {profile!r}, {seed!r}, {connections}).problems == []
"""


def _words(value: Any) -> str:
    return ''.join(character if character.isalnum() else '_' for character in str(value))


def _head(seed: Any, what: str, settings: Settings) -> str:
    return f"""\
def test_fuzz_{what}_{settings.parser}_{_words(seed)}() -> None:
    from nodeipc import Config, ProtocolError
    from nodeipc.parsers import make_parser

    # Found by python3 -m tests.fuzz --seed {seed} --profile {settings.parser}
"""


def _config(settings: Settings) -> str:
    return 'Config({})'.format(', '.join(f'{name}={value!a}' for name, value in settings.given().items()))


def _codes(verdict: Verdict) -> str:
    return '({},)'.format(', '.join(sorted(map(ascii, verdict.codes))))


def _chunk_list(parts: Sequence[bytes]) -> str:
    return '[{}]'.format(', '.join(_bytes(part) for part in [*[part for part in parts if part], b'']))


def _bytes(value: bytes) -> str:
    """The literal of some bytes, and of a long run of the same byte a product."""
    if len(value) > 200 and value[:1] * len(value) == value:
        return f'{value[:1]!r} * {len(value)}'
    return repr(value)
