"""JSON as the command line has it: values in arguments, and lines on stdin and stdout. No endpoint is known here.

What comes from outside is refused with a reason for people; what goes out is one line for each value, in UTF-8.
"""

from __future__ import annotations

import json
import os
import re
import select
import threading
from typing import Any, Iterator, List, NamedTuple

# What a terminal might take for a command, or cannot show. JSON escapes those below the space by itself.
_CONTROLS = re.compile('[\x7f-\x9f\ud800-\udfff]')

_LONE_SURROGATES = re.compile('[\ud800-\udfff]')

# What is read at once. In raw mode it is sent as it is, and has to fit into a datagram.
_CHUNK_BYTES = 32 << 10

STDIN, STDOUT = 0, 1

# Longer lines could not be sent as one message anyway.
MAX_LINE_BYTES = 64 << 20


class OutputClosed(Exception):
    """Whoever read our output has left."""


class Line(NamedTuple):
    """A line of input without its end, and which one it is, counted from 1."""

    number: int
    content: bytes


def _refuse_constant(name: str) -> Any:
    raise ValueError(f'it has no {name}')


_decoder = json.JSONDecoder(parse_constant=_refuse_constant)
_encoder = json.JSONEncoder(separators=(',', ':'), ensure_ascii=False, allow_nan=False, check_circular=False)


def parse(text: str) -> Any:
    """Return the value of a JSON text. Raises ValueError with the reason, in a few words.

    >>> parse('[1, "two"]')
    [1, 'two']
    >>> parse('hello')
    Traceback (most recent call last):
    ValueError: Expecting value at character 1
    """
    try:
        return _decoder.decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f'{error.msg} at character {error.pos + 1}') from None
    except RecursionError:
        raise ValueError('it is nested too deep') from None


def parse_line(line: Line) -> Any:
    """Return the value of a line. Raises ValueError that names it."""
    try:
        return parse(line.content.decode())
    except UnicodeDecodeError:
        raise ValueError(f'line {line.number} is not UTF-8') from None
    except ValueError as error:
        raise ValueError(f'line {line.number} is not JSON ({error}): {_excerpt(line.content)}') from None


def _excerpt(content: bytes) -> str:
    text = content[:60].decode(errors='backslashreplace')
    return text + '...' if len(content) > 60 else text


def compact(value: Any) -> str:
    """Return a value as JSON in one line. A number too large for a float (1e999) is null, as JavaScript has it.

    >>> compact({'degrees': 21.5, 'place': 'K\u00f6ln'})
    '{"degrees":21.5,"place":"K\u00f6ln"}'
    """
    try:
        return _encoder.encode(value)
    except ValueError:
        return _encoder.encode(_without_infinities(value))


def printable(text: str) -> str:
    """Return JSON text for a terminal, which shall take nothing of it for a command."""
    return _CONTROLS.sub(_escape, text)


def _without_infinities(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_infinities(member) for name, member in value.items()}
    if isinstance(value, list):
        return [_without_infinities(member) for member in value]
    return None if isinstance(value, float) and value in (float('inf'), float('-inf')) else value


class Output:
    """stdout, which several threads write whole pieces to, each at once: whoever reads it sees them as they come."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # held while a piece is written, so that pieces do not mingle
        self.is_terminal = os.isatty(STDOUT)

    def value(self, value: Any) -> None:
        """Write a line of JSON. Raises what `write` raises, and RecursionError for what is nested too deep to be written."""
        text = compact(value)
        if self.is_terminal:
            text = printable(text)
        try:
            line = text.encode()
        except UnicodeEncodeError:  # JavaScript's strings hold halves of characters; in JSON they can be escaped
            line = _LONE_SURROGATES.sub(_escape, text).encode()
        self.write(line + b'\n')

    def write(self, data: bytes) -> None:
        """Write all of `data`. Raises OutputClosed if nobody reads, OSError for anything else."""
        rest = memoryview(data)
        with self._lock:
            while rest:
                try:
                    rest = rest[os.write(STDOUT, rest):]
                except BlockingIOError:  # somebody who shares it has made it non-blocking
                    select.select((), (STDOUT,), ())
                except BrokenPipeError:
                    raise OutputClosed from None
                except OSError as error:
                    raise OSError(error.errno, f'cannot write to stdout: {error.strerror}') from error


def _escape(match: Any) -> str:
    return f'\\u{ord(match.group()):04x}'


def chunks() -> Iterator[bytes]:
    """Yield what comes on stdin, as it comes, to the end. Raises OSError."""
    while True:
        try:
            # Not by way of sys.stdin, whose lock a thread that is left waiting would take to the interpreter's end.
            chunk = os.read(STDIN, _CHUNK_BYTES)
        except BlockingIOError:
            select.select((STDIN,), (), ())
            continue
        except OSError as error:
            raise OSError(error.errno, f'cannot read stdin: {error.strerror}') from error
        if not chunk:
            return
        yield chunk


def lines(chunks: Iterator[bytes], max_bytes: int) -> Iterator[List[Line]]:
    """Yield the lines of an input, those that come together in one list. The last one may lack its end.

    The work is linear in the bytes, however long the lines. Raises ValueError for a line of more than `max_bytes`.

    >>> for together in lines(iter([b'1\\n2', b'3\\n4\\n']), 9):
    ...     print(*together)
    Line(number=1, content=b'1')
    Line(number=2, content=b'23') Line(number=3, content=b'4')
    """
    number = 0
    partial = bytearray()
    for chunk in chunks:
        first, newline, rest = chunk.partition(b'\n')
        partial += first
        if newline:
            found = [bytes(partial), *rest.split(b'\n')]
            partial = bytearray(found.pop())
            yield [Line(number + index, content) for index, content in enumerate(found, 1)]
            number += len(found)
        if len(partial) > max_bytes:
            raise ValueError(f'line {number + 1} is longer than {max_bytes} bytes')
    if partial:
        yield [Line(number + 1, bytes(partial))]
