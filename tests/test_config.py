"""Settings: defaults, checks at the assignment, and errors that say what to do."""

from __future__ import annotations

import copy
import os
import pickle
from typing import Any

import pytest

from nodeipc import IPC, Config, ConfigError, Interface
from nodeipc.config import default_socket_root


def test_defaults_are_those_of_the_contract() -> None:
    config = Config()
    assert (config.appspace, config.network_host, config.network_port) == ('app.', '127.0.0.1', 8000)
    assert (config.retry, config.max_retries, config.stop_retrying, config.retry_max) == (500, None, False, None)
    assert (config.emit_timeout, config.connect_timeout, config.stall_timeout) == (10000, 10000, 5000)
    assert (config.max_connections, config.max_pending_bytes, config.max_message_size) == (100, 8 << 20, None)
    assert (config.delimiter, config.unlink, config.secure_socket_root, config.silent) == ('\f', True, True, False)
    assert config.workers == min(8, (os.cpu_count() or 1) + 4)


def test_the_socket_root_is_where_node_ipc_14_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('XDG_RUNTIME_DIR', '/run/user/7/')
    assert default_socket_root() == '/run/user/7/node-ipc/'
    monkeypatch.delenv('XDG_RUNTIME_DIR')
    monkeypatch.setenv('TMPDIR', '/var/tmp/')
    assert default_socket_root() == f'/var/tmp/node-ipc-{os.getuid()}/'
    monkeypatch.delenv('TMPDIR')
    monkeypatch.setenv('TEMP', '/second')
    monkeypatch.setenv('TMP', '/first')  # Node asks TMP before TEMP, Python's tempfile the other way round
    assert default_socket_root() == f'/first/node-ipc-{os.getuid()}/'
    monkeypatch.delenv('TEMP')
    monkeypatch.delenv('TMP')
    assert default_socket_root() == f'/tmp/node-ipc-{os.getuid()}/'


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('id', ''),
        ('id', None),
        ('id', 5),
        ('appspace', None),
        ('socket_root', ''),
        ('network_port', -1),
        ('network_port', 65536),
        ('network_port', '8000'),
        ('network_port', True),
        ('retry', -1),
        ('retry', float('nan')),
        ('retry', float('inf')),
        ('retry', '500'),
        ('max_retries', -1),
        ('max_retries', 1.5),
        ('stop_retrying', 1),
        ('emit_timeout', -5),
        ('connect_timeout', 0),
        ('connect_timeout', None),
        ('max_connections', None),
        ('max_message_size', 0),
        ('max_pending_bytes', 0),
        ('max_pending_bytes', None),
        ('stall_timeout', 0),
        ('delimiter', ''),
        ('delimiter', b'\f'),
        ('workers', -1),
        ('workers', 2.0),
        ('logger', 'stdout'),
        ('log_in_color', 'yes'),
        ('interface', 'eth0'),
        ('interface', {'address': '127.0.0.1'}),
        ('interface', {'family': 5}),
    ],
    ids=lambda value: repr(value),
)
def test_a_wrong_value_raises_at_the_assignment_and_changes_nothing(name: str, value: Any) -> None:
    config = Config()
    before = repr(config)
    with pytest.raises(ConfigError, match=name):
        setattr(config, name, value)
    with pytest.raises(ValueError, match=name):
        Config(**{name: value})
    assert repr(config) == before


def test_an_unknown_field_names_the_nearest() -> None:
    config = Config()
    with pytest.raises(AttributeError, match="did you mean 'max_retries'"):
        config.maxRetries = 5
    with pytest.raises(AttributeError, match="did you mean 'retry'"):
        config.retri  # noqa: B018
    with pytest.raises(AttributeError, match="did you mean 'socket_root'"):
        IPC(socketRoot='/tmp/')


def test_an_interface_can_be_given_as_a_mapping() -> None:
    config = Config(interface={'local_address': '127.0.0.1', 'family': 4})
    assert isinstance(config.interface, Interface)
    assert (config.interface.local_address, config.interface.local_port, config.interface.family) == ('127.0.0.1', None, 4)


def test_a_copy_is_independent() -> None:
    config = Config(retry=5)
    twin = config.copy()
    twin.retry = 6
    twin.interface.local_port = 7
    assert (config.retry, config.interface.local_port) == (5, None)


KEY = '-----BEGIN {0}-----\nsecret\n-----END {0}-----\n'.format('PRIVATE ' + 'KEY')  # of nobody


@pytest.mark.parametrize(
    ('tls', 'why'),
    [
        ({'private': KEY}, "'private' is the path of a PEM file, not empty and not its text"),
        ({'public': ''}, "'public' is the path of a PEM file, not empty"),
        ({'trusted_connections': ['ca.pem', KEY]}, 'is the path of a PEM file, not its text, or a list'),
        ({'trusted_connections': []}, "'trusted_connections' is the path"),
        ({'ca': []}, "'ca' is PEM text or bytes, or a list of them, not empty"),
        ({'ca': 5}, "'ca' is PEM text"),
        ({'passphrase': 5}, "'passphrase' is a str or bytes"),
        ({'request_cert': 'yes'}, "'request_cert' is True or False"),
        ({'server_name': ''}, "'server_name' is a non-empty str"),
        ({'key': 'x'}, "no 'key'; private is the path of the key"),
        ({'cert': 'x'}, "no 'cert'; public is the path"),
        ({'rejectUnauthorized': False}, "in Python it is reject_unauthorized"),
        ({'minVersion': 'TLSv1.2'}, "no 'minVersion'; there are private, public, passphrase, .* an ssl.SSLContext"),
        (True, 'an ssl.SSLContext, a mapping, or None, not of the type bool'),
        ('server.pem', 'an ssl.SSLContext, a mapping, or None'),
    ],
    ids=str,
)
def test_wrong_settings_of_tls_are_refused_and_not_shown(tls: Any, why: str) -> None:
    config = Config()
    with pytest.raises(ConfigError, match=why) as caught:
        config.tls = tls
    assert 'secret' not in str(caught.value)
    assert config.tls is None


def test_settings_of_tls_show_no_secret_and_do_not_change() -> None:
    given = {'private': 'x', 'passphrase': 'secret', 'trusted_connections': ['y']}
    config = Config(tls=given)
    given['trusted_connections'].append(5)  # type: ignore[attr-defined]
    given['nonsense'] = 5
    assert dict(config.tls or {}) == {'private': 'x', 'passphrase': 'secret', 'trusted_connections': ('y',)}
    assert 'secret' not in repr(config) + repr(config.tls)
    with pytest.raises(TypeError):
        config.tls['private'] = 'z'  # type: ignore[index]
    for twin in (config.copy(), copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert twin.tls == config.tls


def test_lists_that_the_application_changes_later_stay_as_they_were() -> None:
    uids, events = [5], ['x']
    config = Config(allowed_uids=uids, allowed_events=events)
    uids.append(6)
    events.clear()
    assert (tuple(config.allowed_uids or ()), tuple(config.allowed_events or ())) == ((5,), ('x',))
    assert (Config().allowed_uids, Config().allowed_events) == (None, None)


def test_settings_are_read_when_an_endpoint_is_made(make: Any) -> None:
    ipc = make()
    server = ipc.serve()
    ipc.config.id = 'other'
    assert server.address.endswith('app.world')
    assert ipc.serve().address.endswith('app.other')


def test_instances_do_not_share_settings() -> None:
    assert IPC(id='a').config.id == 'a'
    assert IPC(id='b').config.id == 'b'
