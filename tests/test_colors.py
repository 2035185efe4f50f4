"""The colours of log themes: on a terminal only, and only where they are welcome."""

from __future__ import annotations

import io
import os
import re
import sys
from typing import Any, Callable, Dict

import pytest

from nodeipc import IPC, colors

THEMES: Dict[str, Callable[..., str]] = {
    name: getattr(colors, name) for name in ('good', 'notice', 'warn', 'error', 'debug', 'variable', 'data', 'rainbow')
}
COLOR = re.compile(r'\x1b\[[0-9;]*m')

every_theme = pytest.mark.parametrize('theme', THEMES.values(), ids=THEMES)


class Terminal:
    """A terminal as stdout: ``with Terminal() as terminal``, in the test itself, because pytest changes stdout too."""

    def __enter__(self) -> Terminal:
        self._controller, end = os.openpty()
        os.set_blocking(self._controller, False)
        self._stdout = os.fdopen(end, 'w')
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(sys, 'stdout', self._stdout)
        self._patch.setenv('TERM', 'xterm')
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self._patch.undo()
        self._stdout.close()
        os.close(self._controller)

    def shown(self) -> str:
        self._stdout.flush()
        return os.read(self._controller, 1 << 16).decode()


@every_theme
def test_a_theme_colours_on_a_terminal_and_keeps_the_text(theme: Any) -> None:
    with Terminal():
        text = theme('got a message')
    assert text.startswith('\x1b[')
    assert text.endswith('\x1b[0m')
    assert COLOR.sub('', text) == 'got a message'


@every_theme
def test_a_theme_is_silent_on_a_pipe(theme: Any) -> None:
    ours, theirs = os.pipe()
    with os.fdopen(ours), os.fdopen(theirs, 'w') as stdout, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'stdout', stdout)
        patch.setenv('TERM', 'xterm')
        assert theme('got a message') == 'got a message'


@every_theme
def test_force_colours_whatever_the_output_is(theme: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('NO_COLOR', '1')
    assert theme('got a message') == 'got a message'
    assert COLOR.sub('', theme('got a message', force=True)) == 'got a message' != theme('got a message', force=True)


def test_every_theme_looks_different() -> None:
    assert len({theme('text', force=True) for theme in THEMES.values()}) == len(THEMES)


@every_theme
def test_a_theme_takes_any_value(theme: Any) -> None:
    assert theme(1500) == '1500'
    assert COLOR.sub('', theme(None, force=True)) == 'None'


def test_a_rainbow_has_a_colour_a_letter() -> None:
    codes = COLOR.findall(colors.rainbow('rainbow', force=True))
    assert len(codes) == len('rainbow') + 1
    assert len(set(codes[:6])) == 6


@pytest.mark.parametrize(
    ('variable', 'value', 'welcome'),
    [
        ('NO_COLOR', '1', False),
        ('NO_COLOR', '0', False),  # present is enough, https://no-color.org
        ('NO_COLOR', '', True),  # and empty is not present
        ('TERM', 'dumb', False),
        ('TERM', 'linux', True),
    ],
)
def test_the_environment_decides_on_a_terminal(
    variable: str, value: str, welcome: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Terminal():
        monkeypatch.setenv(variable, value)
        assert colors.supports_color() is welcome
        assert (colors.good('saved') != 'saved') is welcome


def test_a_program_without_a_usable_stdout_gets_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    for stdout in (None, closed):
        monkeypatch.setattr(sys, 'stdout', stdout)
        assert colors.error('text') == 'text'


def test_ipc_log_is_in_colour_on_a_terminal() -> None:
    with Terminal() as terminal:
        IPC().log(colors.debug('got a message : '), {'a': 1})
        shown = terminal.shown()
    assert '\x1b[34mgot a message : \x1b[0m' in shown
    assert COLOR.sub('', shown) == "got a message :  {'a': 1}\r\n"


def test_ipc_log_is_plain_on_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    IPC().log(colors.debug('got a message : ', force=True), {'a': 1})
    assert capsys.readouterr().out == "got a message :  {'a': 1}\n"
