"""A short run of the fuzzer, and proof that it finds what it is for: decoders and connections that were broken on purpose.

`make fuzz` runs it for longer, with a seed from the clock.
"""

from __future__ import annotations

import re
from typing import Any, Callable, Dict, List

import pytest

from nodeipc import ProtocolError, connection, parsers, profiles, stream, wire, workers

from .fuzz import live
from .fuzz.__main__ import fuzz_live, main
from .fuzz.reference import Settings, encoded, judge

Patch = Callable[[pytest.MonkeyPatch], None]


def fuzz(*options: str) -> int:
    return main(['--seed', '20261122', '--live-seconds', '0', *options])


def test_the_wire_layer_does_what_the_reference_says(capsys: Any) -> None:
    assert fuzz('--frames', '8000') == 0, capsys.readouterr().out


@pytest.mark.parametrize(('kind', 'profile'), live.ROUNDS)
def test_hostile_peers_harm_nobody_else(kind: str, profile: str) -> None:
    assert live.run_round(kind, profile, 20261122).problems == []


def test_a_seed_makes_the_same_run_again(capsys: Any) -> None:
    tables = []
    for seed in '1', '1', '2':
        assert main(['--seed', seed, '--frames', '1000', '--live-seconds', '0']) == 0
        tables.append(capsys.readouterr().out.splitlines()[1:-1])
    assert tables[0] == tables[1] != tables[2]


# The reference itself, by examples that were written down from node-ipc 14


@pytest.mark.parametrize(
    ('stream', 'settings', 'events', 'code'),
    [
        (b'', Settings('fast'), [], None),
        (b'{"type":"x"}\f{"type":"y","data":1}\f', Settings('fast'), [('x', {}), ('y', 1)], None),
        (b'{"type":"x"}\f{"type":"y"', Settings('fast'), [('x', {})], 'ERR_IPC_INVALID_MESSAGE'),
        (b'{"type":"x"}\fx\f{"type":"y"}\f', Settings('fast'), [('x', {})], 'ERR_IPC_INVALID_JSON'),
        (b'[]\f', Settings('fast'), [], 'ERR_IPC_INVALID_MESSAGE'),
        (b'{"type":1}\f', Settings('fast'), [], 'ERR_IPC_INVALID_EVENT'),
        (b'{"type":"connect"}\f', Settings('fast'), [('connect', {})], None),
        (b'{"type":"connect"}\f', Settings('guarded'), [], 'ERR_IPC_RESERVED_EVENT'),
        (b'{"type":"connect"}\f', Settings('guarded', allow_reserved_events=True), [('connect', {})], None),
        (b'{"type":"toString"}\f', Settings('guarded', allow_reserved_events=True), [], 'ERR_IPC_INVALID_EVENT'),
        (b'{"type":""}\f', Settings('guarded'), [], 'ERR_IPC_INVALID_EVENT'),
        (b'{"type":"\\ud83d\\ude00"}\f', Settings('guarded', max_event_name_length=1), [], 'ERR_IPC_EVENT_TOO_LARGE'),
        (b'{"type":"y"}\f', Settings('assured', allowed_events=('x',)), [], 'ERR_IPC_EVENT_NOT_ALLOWED'),
        (b'{"type":"x"} \f', Settings('fast', max_message_size=12), [], 'ERR_IPC_FRAME_TOO_LARGE'),
        (b'{"type":"x"}\r\n', Settings('fast', '\r\n', max_message_size=12), [('x', {})], None),
    ],
    ids=repr,
)
def test_the_reference_knows_the_rules(stream: bytes, settings: Settings, events: List[Any], code: Any) -> None:
    verdict = judge(stream, settings)
    assert (verdict.events, verdict.codes) == (events, {code})


def test_the_reference_encodes() -> None:
    assert encoded('x', ['é', '\ud800', 1.5], Settings('fast')) == '{"type":"x","data":["é","\\ud800",1.5]}\f'.encode()
    assert encoded('x', {1}, Settings('fast')) == 'TypeError'
    assert encoded('x', 'b a', Settings('fast', ' ')) == 'ValueError'
    assert encoded('error', 1, Settings('guarded')) == 'ERR_IPC_RESERVED_EVENT'


# Sabotage


def forget_half_delimiters(monkeypatch: pytest.MonkeyPatch) -> None:
    """A delimiter that is cut in two between chunks is not seen."""
    make = wire.Decoder.__init__

    def without_overlap(self: Any, *arguments: Any) -> None:
        make(self, *arguments)
        self._overlap = 0

    monkeypatch.setattr(wire.Decoder, '__init__', without_overlap)


def allow_one_byte_more(monkeypatch: pytest.MonkeyPatch) -> None:
    check = wire.Decoder._check_size
    monkeypatch.setattr(wire.Decoder, '_check_size', lambda self, size: check(self, size - 1))


def buffer_without_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The size is looked at only when a frame is complete, as if the unfinished one cost nothing."""
    feed = wire.Decoder.feed

    def feed_at_leisure(self: Any, chunk: bytes) -> Any:
        limit = self.max_message_size
        if chunk and b'\f' not in chunk:
            self.max_message_size = 1 << 40
        try:
            yield from feed(self, chunk)
        finally:
            self.max_message_size = limit

    monkeypatch.setattr(wire.Decoder, 'feed', feed_at_leisure)


def lose_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the events of a chunk that is refused, the first are lost."""
    feed = wire.Decoder.feed
    monkeypatch.setattr(wire.Decoder, 'feed', lambda self, chunk: list(feed(self, chunk)))


def patch_decode(monkeypatch: pytest.MonkeyPatch, change: Callable[[str, Any], Any]) -> None:
    decode = wire.decode
    changed = lambda frame: change(*decode(frame))  # noqa: E731
    monkeypatch.setattr(profiles, 'decode', changed)
    monkeypatch.setattr(parsers._Fast.__init__, '__defaults__', (*parsers._Fast.__init__.__defaults__[:-1], changed))


def take_true_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    patch_decode(monkeypatch, lambda type, data: (type, 1 if data is True else data))


def stumble(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception of another kind."""
    patch_decode(monkeypatch, lambda type, data: {}[type] if data == [] else (type, data))


def decode_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    monkeypatch.setattr(wire, '_scan_once', json.JSONDecoder().scan_once)


def let_anybody_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reserved name is let through."""
    check = profiles.Rules.check
    monkeypatch.setattr(profiles.Rules, 'check', lambda self, type: type == 'stop' or check(self, type))


def confuse_the_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiles, 'EVENT_TOO_LARGE', 'ERR_IPC_FRAME_TOO_LARGE')


def accept_half_a_datagram(monkeypatch: pytest.MonkeyPatch) -> None:
    for codec in (parsers.Codec, parsers._Fast):
        monkeypatch.setattr(codec, 'decode_datagram', lambda self, datagram: list(self.decoder().feed(datagram)))


def encode_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    monkeypatch.setattr(wire, '_to_json', json.JSONEncoder(separators=(',', ':'), ensure_ascii=False).encode)


def encode_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    make = wire.Encoder.__init__

    def without_limit(self: Any, *arguments: Any) -> None:
        make(self, *arguments)
        self._limit += 1

    monkeypatch.setattr(wire.Encoder, '__init__', without_limit)


@pytest.mark.parametrize(
    'sabotage',
    [
        forget_half_delimiters, allow_one_byte_more, buffer_without_limit, lose_an_event, take_true_for_one, stumble,
        decode_nan, let_anybody_stop, confuse_the_codes, accept_half_a_datagram, encode_nan, encode_too_much,
    ],
)  # fmt: skip
def test_a_broken_wire_layer_is_found_and_its_test_case_fails(sabotage: Patch, monkeypatch: Any, capsys: Any) -> None:
    with monkeypatch.context() as broken:
        sabotage(broken)
        assert fuzz('--frames', '8000') == 1
        test = printed_test(capsys.readouterr().out)
        with pytest.raises((AssertionError, KeyError)):
            test()
    test()  # and it passes when that is repaired


def test_what_fails_is_printed_small(monkeypatch: Any, capsys: Any) -> None:
    forget_half_delimiters(monkeypatch)
    assert fuzz('--frames', '8000') == 1
    (chunks,) = re.findall(r'for chunk in (.*):', capsys.readouterr().out)
    assert len(b''.join(eval(chunks))) <= 4


def printed_test(output: str) -> Callable[[], None]:
    """Paste the test case."""
    names: Dict[str, Any] = {}
    exec(output[output.index('def test_') :], names)
    (test,) = (value for name, value in names.items() if name.startswith('test_'))
    return test  # type: ignore[no-any-return]


def report_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    patch_decode(monkeypatch, lambda type, data: 1 // 0 if data == [] else (type, data))


def hang_up_on_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    """One who breaks the rules costs the others their connections."""

    def broken(self: Any, connection: Any, error: Exception) -> None:
        for socket in self._server._clients():
            socket._connection.abort()

    monkeypatch.setattr(stream.StreamSocket, '_connection_broken', broken)


def forget_the_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    class Anonymous(ProtocolError):
        def __init__(self, code: str, message: str) -> None:
            super().__init__(code, message.split(': ')[-1])

    monkeypatch.setattr(connection, 'ProtocolError', Anonymous)


def lose_news(monkeypatch: pytest.MonkeyPatch) -> None:
    def post(self: Any, events: List[Any], size: int) -> bool:
        return post_all(self, [event for event in events if event[0] != 'news'], size)

    post_all = workers.Strand.post_events
    monkeypatch.setattr(workers.Strand, 'post_events', post)


@pytest.mark.parametrize('sabotage', [report_a_bug, hang_up_on_everybody, forget_the_endpoint, lose_news])
def test_a_broken_connection_is_found(sabotage: Patch, monkeypatch: Any) -> None:
    sabotage(monkeypatch)
    monkeypatch.setattr(live, '_RETRIED_SECONDS', 0.25)
    _, defect = fuzz_live(['fast'], 0.001, 20261122, lambda text: None)
    assert defect is not None
    with pytest.raises(AssertionError):
        printed_test(defect.test)()
