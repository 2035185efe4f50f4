"""The command line: what is typed, what comes of it, and how it ends.

Processes where stdin, signals and pipes matter, `cli.main` in this one where they do not: a process costs 0.3 s.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import select
import shlex
import signal
import socket as socket_module
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, Callable, Iterator, List

import pytest

import nodeipc
from nodeipc import cli, usage
from nodeipc.commands import _flush, _tell_of_outages
from nodeipc.jsonlines import Line, Output, compact, lines, parse, parse_line

from .certificates import Certificates
from .cli_processes import Command, run
from .conftest import Log, eventually

Start = Callable[..., Command]
Main = Callable[..., List[Any]]

pytestmark = pytest.mark.skipif(sys.platform == 'win32', reason='signals and pipes of POSIX')


@pytest.fixture
def start() -> Iterator[Start]:
    """Start commands, which end with the test."""
    started: List[Command] = []

    def start_command(*arguments: str, **options: Any) -> Command:
        command = Command(*arguments, **options)
        started.append(command)
        return command

    yield start_command
    for command in started:
        command.close()


@pytest.fixture
def main(capfd: pytest.CaptureFixture[str]) -> Main:
    """Run a command in this process, with something on stdin; return its exit code, its output and its errors."""

    def run_command(*arguments: str, typed: bytes = b'') -> List[Any]:
        with stdin_with(typed):
            try:
                code = cli.main(arguments)
            except SystemExit as ended:
                code = ended.code
        return [code, *capfd.readouterr()]

    return run_command


@contextlib.contextmanager
def stdin_with(typed: bytes) -> Iterator[None]:
    with tempfile.TemporaryFile() as file:
        file.write(typed)
        file.seek(0)
        stdin = os.dup(0)
        os.dup2(file.fileno(), 0)
        try:
            yield
        finally:
            os.dup2(stdin, 0)
            os.close(stdin)


@pytest.fixture
def world() -> Iterator[nodeipc.Server]:
    """A server in this process that answers some things, and whose ``log`` has everything."""
    server = nodeipc.serve('world')
    server.log = log = Log()  # type: ignore[attr-defined]
    server.on('*', log)
    server.on('message', lambda data, socket: socket.emit('message', data))
    server.on('question', lambda data, socket: socket.emit('answer', data))
    server.method('add', lambda a, b=0: a + b)

    @server.method
    def fail(data: Any) -> None:
        raise nodeipc.RemoteError(42, 'not today\n\x1b[31m', data)

    with server:
        yield server


def data_of(server: nodeipc.Server, type: str, count: int = 1) -> List[Any]:
    return [event[0] for event in server.log.wait(type, count)]  # type: ignore[attr-defined]


# What can be typed


@pytest.mark.parametrize('name', usage.COMMANDS)
def test_the_help_of_a_command_teaches_by_examples_that_are_accepted(name: str, main: Main) -> None:
    code, output, errors = main(name, '--help')
    assert (code, errors) == (0, '')
    assert output.startswith(f'usage: nodeipc {name}')
    _, _, examples = output.partition('\nexamples:\n')
    assert examples or name == 'demo'
    check_examples(examples)
    assert all(len(line) <= 120 for line in output.splitlines())


def test_the_general_help_has_every_command(main: Main) -> None:
    code, output, errors = main('--help')
    assert (code, errors) == (0, '')
    for name in usage.COMMANDS:
        assert re.search(rf'\n  {name} +\S', output)
    examples = output.partition('\nexamples:\n')[2].partition('\n\n')[0]
    assert len(check_examples(examples)) == 5


def check_examples(text: str) -> List[str]:
    """See that each command can be parsed; return their lines."""
    found = [line for line in text.splitlines() if 'nodeipc' in line]
    for line in found:
        for command in re.findall(r'nodeipc (.*?)(?: \||\)| &| [<>] |   |  through|$)', line):
            usage.parse(shlex.split(command))
    return found


WRONG = {
    'emit': 'required: ADDRESS, TYPE',
    'emit world': 'required: TYPE',
    'emit world -': 'TYPE is missing',
    'emit world ""': 'a name cannot be empty',
    'emit world message hello': """'hello' is not JSON (Expecting value at character 1); a string has the quotes of JSON """
    """inside those of the shell: '"hello"'""",
    'emit world message "NaN"': 'it has no NaN',
    'emit world message 1 2': 'unrecognized arguments: 2',
    'emit world message --timeout soon': "'soon' is not a number of seconds",
    'emit world message --timeout -1': "'-1' is not a number of seconds",
    'emit world message --time 1': 'unrecognized arguments: --time',
    'emit --raw world message 1': '--raw sends bytes',
    'emit world message --raw --delimiter x': 'do not go with it',
    'emit tcp://127.0.0.1:1 message --tls-insecure': 'tls://host:port',
    'emit world message --allow message': '--profile assured',
    'emit tcp://:1 message --profile assured': 'tls://host:port',
    'emit tcp:somewhere message': 'an address is an id',
    'emit 127.0.0.1:8000 message': 'write tcp://127.0.0.1:8000',
    'emit tls://:1 message --tls-ca nowhere.pem': 'nowhere.pem',
    'emit world \udcff': 'is not UTF-8',
    'listen world --profile assured': '--allow EVENT',
    'listen udp://:1': 'use request, or serve',
    r'listen world --delimiter \q': r'there is no escape \q',
    "listen world --delimiter ''": 'cannot be empty',
    'call world add 1 b=2': 'all a NAME= or none',
    'call world add a=1 a=2': 'a= is given twice',
    'call world add b=two': "'two' is not JSON",
    'call world add timeout=2': 'use --timeout',
    'serve tls://:0': '--tls-cert FILE --tls-key FILE',
    'serve world --sync': 'unrecognized arguments: --sync',
    'bench udp://:1': 'UDP loses messages',
    'bench --seconds 0': 'above 0',
    'bench --in-flight 0': '1 or more',
    'bench --size x': '0 or more',
    'bench --profile assured': 'needs an ADDRESS',
    'emti world': 'did you mean emit?',
    '-v emit': 'options go after the command: nodeipc emit -v',
    '--verbose': 'no option --verbose',
}


@pytest.mark.parametrize('words', WRONG)
def test_wrong_usage_is_told_in_a_line_below_the_right_one(words: str, main: Main) -> None:
    code, output, errors = main(*shlex.split(words.replace('\\', '\\\\')))
    assert (code, output) == (2, '')
    *usage_line, error = errors.splitlines()
    assert error.startswith('nodeipc')
    assert WRONG[words] in error
    assert len(usage_line) <= 1  # there is none for a wrong address
    assert all(line.startswith('usage: nodeipc ') for line in usage_line)


def test_options_may_stand_anywhere(world: nodeipc.Server, main: Main) -> None:
    assert main('request', '--timeout', '5', 'world', 'message', '--reply', 'message', '7') == [0, '7\n', '']
    assert main('request', 'world', '--timeout=inf', 'message', '-1.5') == [0, '-1.5\n', '']


# JSON


def test_what_json_is_told_apart_from_what_it_is_not() -> None:
    assert parse(' {"a": [1, 2.5, null]} ') == {'a': [1, 2.5, None]}
    for text in ('', 'NaN', '[-Infinity]', "'x'", '1 2', '[1,]', '[' * 100_000):
        with pytest.raises(ValueError, match='.'):
            parse(text)
    with pytest.raises(ValueError, match=r'^line 7 is not JSON \(Expecting value at character 1\): xxx.{55,70}\.\.\.$'):
        parse_line(Line(7, b'x' * 100))


def test_lines_may_come_in_any_chunks() -> None:
    text = b'one\n\ntwo\r\nthree\xff\n\nfour'
    whole = [Line(number, content) for number, content in enumerate(text.split(b'\n'), 1)]
    for size in range(1, len(text) + 1):
        chunks = [text[start:start + size] for start in range(0, len(text), size)]
        assert [line for together in lines(iter(chunks), 100) for line in together] == whole
    with pytest.raises(ValueError, match='line 2 is longer than 5 bytes'):
        list(lines(iter([b'1234567\n', b'123', b'456', b'7']), 5))


def test_what_json_carries_though_it_is_odd(world: nodeipc.Server, main: Main) -> None:
    for text in ('"\\ud800"', '"\\u0000\\u001b[31m"', '[[[{}]]]', '123456789012345678901234567890', '""', '{}', 'null'):
        assert main('request', 'world', 'message', text) == [0, text + '\n', '']
    assert main('request', 'world', 'message', '"K\\u00f6ln \N{SNOWMAN}"') == [0, '"K\u00f6ln \N{SNOWMAN}"\n', '']
    code, output, errors = main('request', 'world', 'message', '1e999')
    assert (code, output) == (1, '') and 'JSON cannot carry the data' in errors
    assert compact({'a': [float('inf'), 'Infinity', -1.5]}) == '{"a":[null,"Infinity",-1.5]}'


def test_a_terminal_is_told_nothing_that_it_would_take_for_a_command(capfd: pytest.CaptureFixture[str]) -> None:
    output = Output()
    for output.is_terminal in (False, True):
        output.value('\x9b31m \x1b[31m \x7f')
    assert capfd.readouterr().out == '"\x9b31m \\u001b[31m \x7f"\n"\\u009b31m \\u001b[31m \\u007f"\n'


# Clients that ask


def test_a_request_prints_the_answer(world: nodeipc.Server, main: Main) -> None:
    assert main('request', 'world', 'message', '{"a": [1, 2]}') == [0, '{"a":[1,2]}\n', '']
    assert main('request', 'world', 'message') == [0, '{}\n', '']
    assert main('request', 'world', 'question', 'true', '--reply', 'answer') == [0, 'true\n', '']
    path = str(world.address)
    assert main('request', path, 'message', '1') == main('request', f'unix:{path}', 'message', '1') == [0, '1\n', '']


def test_who_does_not_answer_in_time_is_exit_code_3(world: nodeipc.Server, main: Main) -> None:
    code, output, errors = main('request', 'world', 'question', '--timeout', '0.05')
    assert (code, output) == (3, '')
    assert re.fullmatch(r"nodeipc request: client .*'question' was sent, and no 'question' came within 0\.05 s.*\n", errors)


@pytest.mark.parametrize('words', ['emit nobody x', 'request nobody x', 'call nobody x', 'describe nobody', 'bench nobody'])
def test_where_nobody_serves_is_exit_code_3_and_says_why(words: str, main: Main) -> None:
    code, output, errors = main(*words.split(), '--timeout', '0.05')
    assert (code, output) == (3, '')
    assert re.fullmatch(r'nodeipc \w+: .*app\.nobody.*No such file or directory.*\n', errors)


def test_a_call_prints_the_result(world: nodeipc.Server, main: Main) -> None:
    assert main('call', 'world', 'add', '1', '2') == [0, '3\n', '']
    assert main('call', 'world', 'add', 'a="x"', 'b="y=z"') == [0, '"xy=z"\n', '']
    assert main('call', 'world', 'add', '[]', '["="]') == [0, '["="]\n', '']


def test_an_error_of_a_call_goes_to_stderr_in_one_harmless_line(world: nodeipc.Server, main: Main) -> None:
    for words, error in (
        ('add', "Invalid params: missing a required argument: 'a' [-32602]"),
        ('subtract', "Method not found: 'subtract' [-32601]"),
        ('fail {"b":1}', 'not today \\x1b[31m [42]: {"b":1}'),
    ):
        assert main('call', 'world', *words.split()) == [1, '', f'nodeipc call: {error}\n']


def test_describe_prints_what_a_server_says_of_itself(world: nodeipc.Server, main: Main) -> None:
    assert main('describe', 'world') == [0, '{"id":"world","listening":{},"broadcasting":{}}\n', '']
    world.define.listen.message = 'a string'
    world.define.broadcast = {'news': {'headline': 'a string'}}
    code, output, errors = main('describe', 'world')
    assert (code, errors) == (0, '')
    assert json.loads(output) == {
        'id': 'world', 'listening': {'message': 'a string'}, 'broadcasting': {'news': {'headline': 'a string'}}
    }


def test_describe_prints_what_came_and_says_what_did_not(main: Main) -> None:
    def half(data: Any, socket: nodeipc.Socket) -> None:
        socket.emit('events.broadcasting', {'id': 7, 'events': {'a': 1}})

    server = nodeipc.serve('tcp://127.0.0.1:0')
    server.off('get.events.listening')
    server.off('get.events.broadcasting')
    server.on('get.events.broadcasting', half)
    with server:
        code, output, errors = main('describe', f'tcp://127.0.0.1:{server.address[1]}', '--timeout', '0.3')
    assert (code, json.loads(output)) == (3, {'id': 7, 'listening': None, 'broadcasting': {'a': 1}})
    assert 'plain node-ipc servers' in errors


def test_describe_is_for_people_on_a_terminal(world: nodeipc.Server, start: Start) -> None:
    world.define.listen = {'message': 'a string \x1b]0;title\x07 \x9b', 'add\n': {'a': 1}}
    controller, terminal = os.openpty()
    with os.fdopen(controller, 'rb', 0) as screen:
        describe = start('describe', 'world', stdout=terminal)
        os.close(terminal)
        assert describe.ends() == [0, '', '']
        assert screen.read(4096).decode().splitlines() == [
            'world listens for',
            '    message  a string \\u001b]0;title\\u0007 \\u009b',
            '    add\\n    {"a":1}',
            'world broadcasts nothing that it tells of',
        ]


def test_a_peer_that_dies_in_the_middle_is_exit_code_1(main: Main, tmp_path: Path) -> None:
    with socket_module.socket(socket_module.AF_UNIX) as listener:
        listener.bind(str(tmp_path / 'peer'))
        listener.listen()

        def die() -> None:
            for answer in (b'', b'not JSON\f'):
                peer, _ = listener.accept()
                with peer:
                    peer.recv(4096)
                    peer.sendall(answer)

        thread = threading.Thread(target=die)
        thread.start()
        code, output, errors = main('request', str(tmp_path / 'peer'), 'message')
        assert (code, output) == (1, '')
        assert re.fullmatch(r'nodeipc request: client .*\n', errors)
        code, output, errors = main('call', str(tmp_path / 'peer'), 'add')
        assert (code, output) == (1, '')
        assert re.fullmatch(r'nodeipc call: client .*ERR_IPC_INVALID_JSON.*\n', errors)
        thread.join()
    (tmp_path / 'peer').unlink()


def test_answers_to_lines(world: nodeipc.Server, main: Main) -> None:
    typed = b'1\n\n {"a": 2} \r\n' + json.dumps('x' * (3 << 20)).encode()
    answers = '1\n{"a":2}\n' + json.dumps('x' * (3 << 20)) + '\n'
    assert main('request', 'world', 'message', '-', typed=typed) == [0, answers, '']
    assert main('request', 'world', 'message', '-', typed=b'1\n2 3\n4\n') == [
        1, '1\n', 'nodeipc request: line 2 is not JSON (Extra data at character 3): 2 3\n'
    ]


# Emitting


def test_an_event_is_delivered_before_emit_ends(world: nodeipc.Server, main: Main) -> None:
    assert main('emit', 'world', 'news') == [0, '', '']
    assert main('emit', 'world', 'news', '"x"', '-v')[:2] == [0, '']
    assert data_of(world, 'news', 2) == [{}, 'x']


def test_each_line_is_emitted_as_it_comes(world: nodeipc.Server, start: Start) -> None:
    emit = start('emit', 'world', 'reading', '-')
    for count, value in enumerate(('{"degrees": 21.5}', '22', '"K\u00f6ln"'), 1):
        emit.type(value + '\n')
        assert data_of(world, 'reading', count)[-1] == json.loads(value)
    emit.type('\n\r\n[4]')  # its last line has no end
    assert emit.ends() == [0, '', '']
    assert data_of(world, 'reading', 4)[3] == [4]


def test_many_lines_and_huge_ones_all_arrive(world: nodeipc.Server, main: Main) -> None:
    huge = 'x' * (5 << 20)
    typed = b'%s"%s"\n' % (b''.join(b'%d\n' % number for number in range(20_000)), huge.encode())
    assert main('emit', 'world', 'reading', '-', typed=typed) == [0, '', '']
    received = data_of(world, 'reading', 20_001)
    assert received[:-1] == list(range(20_000))
    assert received[-1] == huge


BAD_LINES = {
    b'oops': 'line 3 is not JSON (Expecting value at character 1): oops',
    b'"\xff"': 'line 3 is not UTF-8',
    b'-Infinity': 'line 3 is not JSON (it has no -Infinity): -Infinity',
    b'[1e999]': "line 3: event 'reading': JSON cannot carry the data",
}


@pytest.mark.parametrize('bad', BAD_LINES)
def test_a_bad_line_is_named_and_those_before_it_arrive(bad: bytes, world: nodeipc.Server, main: Main) -> None:
    code, output, errors = main('emit', 'world', 'reading', '-', typed=b'1\n2\n%s\n4\n' % bad)
    assert (code, output) == (1, '')
    assert errors.startswith(f'nodeipc emit: {BAD_LINES[bad]}') and errors.count('\n') == 1
    assert data_of(world, 'reading', 2) == [1, 2]


def test_a_server_that_takes_nothing_is_exit_code_3_at_once(main: Main, tmp_path: Path) -> None:
    path = str(tmp_path / 'stuck')
    with contextlib.ExitStack() as cleanup, socket_module.socket(socket_module.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        cleanup.callback(os.unlink, path)
        for words in (['emit', path, 'news', '-'], ['request', path, 'news', '-']):
            code, output, errors = main(*words, '--timeout', '0.2', '-v', typed=b'"%s"\n' % (b'x' * (1 << 20)))
            assert (code, output) == (3, '')
            assert re.search(r'^nodeipc (emit|request): .* 0\.2 s', errors, re.MULTILINE)
            assert 'stall_timeout' not in errors  # it was not waited for another time, for a goodbye


def test_emit_gives_time_as_long_as_something_is_taken() -> None:
    class SlowServer:
        """Of the client that emits to it, what is asked."""

        pending = [30, 20, 10, 10]
        flushes = 0

        def stats(self) -> Any:
            return {'pending_bytes': self.pending[self.flushes]}

        def flush(self, timeout: float) -> None:
            self.flushes += 1
            raise nodeipc.EmitTimeout(str(timeout))

    client: Any = SlowServer()
    with pytest.raises(nodeipc.EmitTimeout):
        _flush(client, 0.5)
    assert client.flushes == 3


def test_emit_waits_for_a_server_that_comes_late(start: Start) -> None:
    emit = start('emit', 'world', 'news', '7', '-v')
    assert 'cannot connect' in emit.complaint()  # that is what -v is for
    server = nodeipc.serve('world')
    log = Log()
    server.on('news', lambda data: log('news', data))
    with server:
        assert emit.ends()[0] == 0
        assert log.wait('news') == [(7,)]


# Listening


def test_listen_prints_each_event_at_once(world: nodeipc.Server, start: Start) -> None:
    everything, some = start('listen', 'world'), start('listen', 'world', 'news', 'weather')
    world.log.wait('connect', 2)  # type: ignore[attr-defined]
    for type, data in (('news', 'K\u00f6ln'), ('other', {}), ('weather', [1.5, None])):
        world.broadcast(type, data)
    assert some.lines(2) == ['{"type":"news","data":"K\u00f6ln"}', '{"type":"weather","data":[1.5,null]}']
    assert everything.lines(3)[1] == '{"type":"other","data":{}}'
    everything.interrupt()
    some.interrupt(signal.SIGTERM)
    assert everything.ends() == [130, '', '']
    assert some.ends() == [143, '', '']


def test_listen_goes_on_when_the_server_comes_back(start: Start) -> None:
    headlines = iter(['first', 'second'])
    server = nodeipc.serve('world')
    server.on('connect', lambda socket: socket.emit('news', next(headlines)))
    with server:
        listen = start('listen', 'world')
        assert listen.line() == '{"type":"news","data":"first"}'
    complaint = listen.complaint()  # one, for each outage
    assert complaint.endswith('No such file or directory; trying again')
    with server:
        assert listen.complaint() == 'nodeipc listen: connected'
        assert listen.line() == '{"type":"news","data":"second"}'
    listen.interrupt()
    assert listen.ends() == [130, '', '']


def test_an_outage_is_told_once_and_so_is_the_next() -> None:
    class Listener:
        """Of the session, what is asked."""

        said: List[str] = []

        def tell(self, message: str) -> None:
            self.said.append(message)

    session: Any = Listener()
    errors: List[Exception] = []

    def watch(client: nodeipc.Client) -> None:
        client.on('error', errors.append)
        _tell_of_outages(client, session)

    server = nodeipc.serve('world')
    with nodeipc.connect('world', watch, retry=10):
        for outage in (1, 2):
            count = len(errors)
            eventually(lambda count=count: len(errors) >= count + 3)
            with server:
                eventually(lambda outage=outage: len(session.said) == 2 * outage)
    said = [line[-12:] for line in session.said[:4]]  # then the server has gone once more
    assert said == ['trying again', 'connected'] * 2


def test_listen_ends_when_nothing_has_come_for_too_long(world: nodeipc.Server, main: Main) -> None:
    world.on('connect', lambda socket: socket.emit('news', 1))
    code, output, errors = main('listen', 'world', '--timeout', '0.2')
    assert (code, output) == (3, '{"type":"news","data":1}\n')
    assert re.fullmatch(r'nodeipc listen: client .* nothing came for 0.2 s\n', errors)


@pytest.mark.parametrize('command', ['listen', 'serve'])
def test_a_reader_that_leaves_ends_it_quietly_though_nothing_comes(
    command: str, world: nodeipc.Server, start: Start
) -> None:
    process = start(command, 'world' if command == 'listen' else 'other')
    if command == 'listen':
        world.log.wait('connect')  # type: ignore[attr-defined]
    else:
        process.listening()
    process.process.stdout.close()  # type: ignore[union-attr]
    process.process.stdout = None
    assert process.ends() == [0, '', '']


def test_ctrl_c_is_heard_while_nobody_takes_the_output(world: nodeipc.Server, start: Start) -> None:
    listen = start('listen', 'world')
    world.log.wait('connect')  # type: ignore[attr-defined]
    threading.Thread(target=world.broadcast, args=('news', 'x' * (4 << 20)), daemon=True).start()
    assert listen.process.stdout.read(1) == b'{'  # type: ignore[union-attr]
    listen.interrupt()
    listen.process.wait(20)
    assert listen.ends()[::2] == [130, '']


# Serving


def test_serve_prints_what_comes_and_broadcasts_what_is_typed(start: Start, tmp_path: Path) -> None:
    serve = start('serve', 'world', '--echo')
    path = serve.listening()
    assert path == f'unix:{tmp_path}/node-ipc/app.world'
    log = Log()
    with nodeipc.connect('world', lambda client: client.on('*', log)) as client:
        me = f'pid {os.getpid()}'
        for type, data in (('message', {'a': 'K\u00f6ln'}), ('connect', None), ('message', {})):
            client.emit(type, data)
            assert json.loads(serve.line()) == {'type': type, 'data': data, 'from': me}
        assert log.wait('message', 2) == [({'a': 'K\u00f6ln'},), ({},)]
        typed = {
            'news': ('news', {}),
            'news 1': ('news', 1),
            '  news   {"a": [1, 2]}  ': ('news', {'a': [1, 2]}),
            'news hello world': ('news', 'hello world'),
            'news NaN': ('news', 'NaN'),
            '{"type": "news", "data": null, "from": "pid 1"}': ('news', None),
            '{"type": "news"}': ('news', {}),
        }
        for line in typed:
            serve.type(line + '\n')
        assert log.wait('news', len(typed)) == [(data,) for _, data in typed.values()]
        serve.type('{"type": 1}\n{"type": "x"\n\n{"type": ""}\nend\n')
        log.wait('end')
        assert [serve.complaint().partition(' line ')[2][:14] for _ in range(2)] == ['8 needs a "typ', '9 is not JSON ']
        assert serve.complaint().startswith('nodeipc serve: not sent: ')
    serve.process.stdin.close()  # type: ignore[union-attr]
    with nodeipc.connect('world') as client:  # it goes on
        assert client.request('message', 'still there', timeout=20) == 'still there'
        serve.line()
    serve.interrupt(signal.SIGTERM)
    assert serve.ends() == [143, '', '']
    assert not os.path.exists(path[len('unix:'):])


def test_serve_names_network_peers_by_their_address(start: Start) -> None:
    serve = start('serve', 'tcp://127.0.0.1:0', '--delimiter', r'\r\n')
    address = serve.listening()
    host, port = re.fullmatch(r'tcp://(127\.0\.0\.1):(\d+)', address).groups()  # type: ignore[union-attr]
    with socket_module.create_connection((host, int(port))) as sock:
        sock.sendall(b'{"type":"message","data":1}\r\n')
        assert json.loads(serve.line())['from'] == f'127.0.0.1:{sock.getsockname()[1]}'
        serve.type('news 1\n')
        assert sock.recv(100) == b'{"type":"news","data":1}\r\n'
    serve.interrupt()
    assert serve.ends() == [130, '', '']


def test_a_live_server_is_not_taken_over(world: nodeipc.Server, main: Main) -> None:
    code, output, errors = main('serve', 'world')
    assert (code, output) == (1, '')
    assert re.fullmatch(r'nodeipc serve: .*app\.world.*\n', errors)


def test_a_client_who_does_not_take_its_echo_keeps_nobody_from_being_heard(start: Start) -> None:
    serve = start('serve', 'world', '--echo', stdout=subprocess.DEVNULL)
    serve.listening()
    with nodeipc.connect('world') as client, nodeipc.connect('world', max_pending_bytes=1, workers=1) as deaf:
        stop = threading.Event()
        deaf.on('flood', lambda: stop.wait(20))

        def flood() -> None:
            for _ in range(200):
                deaf.emit('flood', 'x' * (256 << 10), timeout=0.2)

        with pytest.raises(nodeipc.EmitTimeout):
            flood()
        assert client.request('message', 'hello', timeout=20) == 'hello'
        serve.interrupt()
        stop.set()
        assert serve.ends()[0] == 130


def test_a_server_in_the_background_of_a_terminal_is_not_stopped_by_it(tmp_path: Path) -> None:
    # A terminal of its own, and in it a shell with job control, as somebody has who types `nodeipc serve world &`.
    program = shlex.join([sys.executable, '-m', 'nodeipc', 'serve', 'world'])
    pid, screen = os.forkpty()
    if pid == 0:
        os.execvp('bash', ['bash', '--norc', '-i'])
    with os.fdopen(screen, 'r+b', 0) as terminal:
        terminal.write(f'{program} &\n'.encode())
        shown = b''

        def shows(text: bytes) -> None:
            nonlocal shown
            while text not in shown:
                assert select.select([terminal], [], [], 20)[0], shown
                shown += terminal.read(4096)

        try:
            shows(b'listening at')
            with nodeipc.connect('world') as client:
                log = Log()
                client.on('news', lambda data: log('news', data))
                client.emit('message', 'hello')
                shows(b'"data":"hello"')
                terminal.write(b'fg\n')  # now it can be typed at
                eventually(lambda: terminal.write(b'news 7\n') and log.of('news'))
                terminal.write(b'\x03')
        finally:
            os.kill(pid, signal.SIGHUP)
            os.waitpid(pid, 0)
    eventually(lambda: not (tmp_path / 'node-ipc' / 'app.world').exists())
    assert b'Stopped' not in shown


# Ends


WAITING = {'emit': ['emit', 'nobody', 'x'], 'request': ['request', 'world', 'x'], 'lines': ['emit', 'world', 'x', '-']}


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize('what', WAITING)
def test_a_signal_ends_it_quietly_wherever_it_is(
    what: str, number: signal.Signals, world: nodeipc.Server, start: Start
) -> None:
    if (what == 'emit') != (number == signal.SIGHUP):  # some of them will do
        return
    command = start(*WAITING[what], '-v' if what == 'emit' else '--sync')
    if what == 'emit':
        command.complaint()
    else:
        world.log.wait('connect')  # type: ignore[attr-defined]
    command.interrupt(number)
    code = command.process.wait(20)
    assert code == 128 + number
    errors = command.ends()[2]
    assert what == 'emit' or errors == ''
    assert 'Traceback' not in errors


def test_closed_and_full_outputs(world: nodeipc.Server) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        assert run('request', 'world', 'message', stdout=write) == [0, '', '']
        assert run('--help', stdout=write) == [0, '', '']
        assert run('emit', 'world', 'news', '1', stdout=write) == [0, '', '']  # what has no output is not kept from its work
    finally:
        os.close(write)
    assert data_of(world, 'news') == [1]
    closed = 'exec "$@" >&- <&-'
    code, _, errors = run_in_shell(closed, 'request', 'world', 'message')
    assert (code, errors) == (1, 'nodeipc request: [Errno 9] cannot write to stdout: Bad file descriptor\n')
    code, output, errors = run_in_shell('exec "$@" 2>&-', 'request', 'nobody', 'message', '--timeout', '0')
    assert (code, output, errors) == (3, '', '')
    code, _, errors = run_in_shell(closed, 'emit', 'world', 'message', '-')
    assert (code, errors) == (1, 'nodeipc emit: [Errno 9] cannot read stdin: Bad file descriptor\n')
    if os.path.exists('/dev/full'):
        code, _, errors = run_in_shell('exec "$@" > /dev/full', 'request', 'world', 'message')
        assert (code, errors) == (1, 'nodeipc request: [Errno 28] cannot write to stdout: No space left on device\n')


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='an output that is full')
def test_a_server_whose_output_is_full_ends(start: Start) -> None:
    with open('/dev/full', 'wb') as full:
        serve = start('serve', 'world', stdout=full)
    serve.listening()
    with nodeipc.connect('world') as client:
        client.emit('message')
        assert serve.ends() == [1, '', 'nodeipc serve: [Errno 28] cannot write to stdout: No space left on device\n']


def run_in_shell(script: str, *arguments: str) -> List[Any]:
    """Run ``nodeipc ...``, which is "$@" in a script."""
    from .cli_processes import NODEIPC, ROOT

    command = ['sh', '-c', script, 'sh', *NODEIPC, *arguments]
    done = subprocess.run(command, capture_output=True, cwd=str(ROOT), timeout=30)
    return [done.returncode, done.stdout.decode(), done.stderr.decode()]


# Options


def test_raw_bytes_go_both_ways(start: Start, main: Main) -> None:
    everything = bytes(range(256)) * 200  # a pipe holds that
    serve = start('serve', 'tcp://127.0.0.1:0', '--raw', '--echo')
    address = serve.listening()
    listen = start('listen', address, '--raw')
    assert main('emit', '--raw', address, 'K\u00f6ln') == [0, '', '']
    assert serve.process.stdout.read(5) == 'K\u00f6ln'.encode()  # type: ignore[union-attr]
    assert main('emit', '--raw', address, '-', typed=everything) == [0, '', '']
    assert serve.process.stdout.read(len(everything)) == everything  # type: ignore[union-attr]
    eventually(lambda: typed_at(serve) and len(heard_by(listen)) > 10)
    listen.interrupt()
    code, output, errors = listen.ends()
    assert (code, errors) == (130, '')
    assert set(output) <= set('news\n')
    serve.interrupt(signal.SIGTERM)
    assert serve.ends()[0] == 143


def typed_at(serve: Command) -> bool:
    serve.type('news\n')  # the listener may not be there yet
    return True


def heard_by(listen: Command) -> bytes:
    """What there is to read already."""
    import array
    import fcntl
    import termios

    size = array.array('i', [0])
    fcntl.ioctl(listen.process.stdout, termios.FIONREAD, size)  # type: ignore[arg-type]
    return b'?' * size[0]


def test_tls_as_in_a_shell(certificates: Certificates, start: Start, main: Main) -> None:
    own = ['--tls-cert', certificates.pem('server'), '--tls-key', certificates.key('server')]
    ca = ['--tls-ca', certificates.pem('ca')]
    serve = start('serve', 'tls://127.0.0.1:0', '--echo', *own, *ca)
    address = serve.listening()
    assert address.startswith('tls://127.0.0.1:')
    client = ['--tls-cert', certificates.pem('client'), '--tls-key', certificates.key('client')]
    assert main('request', address, 'message', '1', *ca, *client) == [0, '1\n', '']
    assert main('request', address, 'message', '1', '--tls-insecure', *client) == [0, '1\n', '']
    code, _, errors = main('request', address, 'message', '1', *client, '--timeout', '0.2')
    assert code == 3 and 'certificate' in errors
    other = ['--tls-server-name', 'x.org', '--timeout', '0.2']
    code, _, errors = main('request', address, 'message', '1', *ca, *client, *other)
    assert code == 3 and 'x.org' in errors
    serve.interrupt()
    assert serve.ends()[0] == 130


def test_assured_commands_need_only_be_told_of_other_events(start: Start, main: Main) -> None:
    assured = ['--profile', 'assured']
    serve = start('serve', 'world', '--echo', *assured, '--allow', 'message', '--allow', 'news')
    serve.listening()
    assert main('request', 'world', 'message', '1', *assured) == [0, '1\n', '']
    code, _, errors = main('request', 'world', 'other', '1', *assured, '--timeout', '5')
    assert code == 1 and errors.count('\n') == 1
    listen = start('listen', 'world', 'news', *assured)
    eventually(lambda: typed_at(serve) and heard_by(listen))
    assert listen.line() == '{"type":"news","data":{}}'
    assert 'ERR_IPC_EVENT_NOT_ALLOWED' in serve.complaint()


def test_places_and_sync(start: Start, main: Main, tmp_path: Path) -> None:
    root = tmp_path / 'root'
    there = ['--socket-root', str(root), '--appspace', 'our.', '--delimiter', r'\n']
    serve = start('serve', 'world', '--echo', '--id', 'me', *there)
    assert serve.listening() == f'unix:{root}/our.world'
    assert main('request', 'world', 'message', '1', *there, '--sync') == [0, '1\n', '']
    assert json.loads(main('describe', 'world', *there)[1])['id'] == 'me'
    assert main('emit', 'world', 'message', '-', *there, '--sync', typed=b'1\n2\n3\n') == [0, '', '']


def test_with_sync_the_next_waits_for_the_answer(world: nodeipc.Server, main: Main) -> None:
    code, _, errors = main('emit', 'world', 'reading', '-', '--sync', '--timeout', '0.2', typed=b'1\n2\n')
    assert code == 3 and errors.startswith('nodeipc emit: ')
    assert data_of(world, 'reading') == [1]


def test_udp(main: Main, start: Start) -> None:
    serve = start('serve', 'udp://127.0.0.1:0', '--echo')
    address = serve.listening()
    assert re.fullmatch(r'udp://127\.0\.0\.1:\d+', address)
    assert main('request', address, 'message', '1') == [0, '1\n', '']
    assert json.loads(serve.line())['data'] == 1
    assert main('emit', address, 'message', '2') == [0, '', '']
    assert json.loads(serve.line())['data'] == 2
    host, _, port = address[len('udp://'):].partition(':')
    with socket_module.socket(type=socket_module.SOCK_DGRAM) as sock:
        for data in (b'[%s1]' % (b'1e9,' * 12_000), b'3'):  # the first is too large when it is written as Python does
            sock.sendto(b'{"type":"message","data":%s}\f' % data, (host, int(port)))
    assert json.loads(serve.line())['data'] == [1e9] * 12_000 + [1]
    assert json.loads(serve.line())['data'] == 3  # it goes on
    assert serve.complaint().startswith('nodeipc serve: no echo for 127.0.0.1:')
    serve.interrupt()
    assert serve.ends()[0] == 130


def test_more_v_says_more(world: nodeipc.Server, main: Main) -> None:
    assert main('request', 'world', 'message')[2] == ''
    errors = main('request', 'world', 'message', '-vv')[2]
    assert all(line.startswith('nodeipc request: ') for line in errors.splitlines())
    assert 'connected' in errors
    assert logging.getLogger('nodeipc').level == logging.NOTSET  # as before
    assert not logging.getLogger('nodeipc').handlers
