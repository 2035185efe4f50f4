"""Fixtures that start peers, for each version of node-ipc, and end them after the test."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Callable, Iterator, List

import pytest

from .peers import UDP, VERSIONS, Missing, NodePeer, Place, Process, PythonPeer, find_node


@pytest.fixture(scope='module', params=list(VERSIONS))
def version(request: pytest.FixtureRequest) -> str:
    """A version of node-ipc that can be run here."""
    version = str(request.param)
    try:
        find_node(version)
    except Missing as reason:
        pytest.skip(str(reason))
    return version


@pytest.fixture
def place(transport: str, tmp_path: Path) -> Iterator[Place]:
    """Where server and clients meet, over Unix and over TCP."""
    place = Place(transport, tmp_path)
    yield place
    place.close()


@pytest.fixture(params=['udp4', 'udp6'])
def udp(request: pytest.FixtureRequest) -> UDP:
    """UDP over both versions of IP, where the machine has them."""
    udp = UDP(str(request.param))
    try:
        udp.plain_socket().close()
    except OSError as error:
        pytest.skip(f'no {udp.type} here: {error}')
    return udp


@pytest.fixture
def processes() -> Iterator[List[Process]]:
    """Peers that end, without having failed, after the test."""
    started: List[Process] = []
    yield started
    with contextlib.ExitStack() as all_of_them:  # the last first, and one that has failed keeps no other from ending
        for process in started:
            all_of_them.callback(process.close)


@pytest.fixture(scope='module')
def resident(version: str) -> Iterator[NodePeer]:
    """A node-ipc peer that stays for all tests of a module and a version: a process takes long to start."""
    peer = NodePeer(version)
    yield peer
    peer.close()


@pytest.fixture
def node(resident: NodePeer) -> Iterator[NodePeer]:
    """A node-ipc peer of the version, as if it had just begun. A test that kills or closes one starts its own."""
    yield resident
    resident.reset()


@pytest.fixture
def start_node(version: str, processes: List[Process]) -> Callable[[], NodePeer]:
    """Start a node-ipc peer of the version in a process of its own, which may be killed."""

    def start() -> NodePeer:
        peer = NodePeer(version)
        processes.append(peer)
        return peer

    return start


@pytest.fixture
def start_python(processes: List[Process]) -> Callable[..., PythonPeer]:
    """Start a nodeipc peer, ``'serve'`` or ``'connect'``, in a process of its own."""

    def start(role: str, place: Place, **settings: Any) -> PythonPeer:
        peer = PythonPeer(role, place, **settings)
        processes.append(peer)
        return peer

    return start
