"""Descriptions of events, which a server sends to whoever asks for them. Values only: who asks and how is the server's."""

from __future__ import annotations

from typing import Any, Dict, Mapping


class EventDescriptions(Dict[str, Any]):
    """Descriptions of events by name, as items or attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f'no description of an event {name!r}') from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self[name]
        except KeyError:
            raise AttributeError(f'no description of an event {name!r}') from None


class Definitions:
    """What a server says of itself: the events it listens for, and those it broadcasts.

    >>> define = Definitions()
    >>> define.listen.message = 'a string'
    >>> define.listen
    {'message': 'a string'}
    >>> define.broadcast = {'news': 'a headline'}
    >>> define.broadcast.news
    'a headline'
    """

    __slots__ = ('broadcast', 'listen')

    def __init__(self) -> None:
        self.listen = EventDescriptions()
        self.broadcast = EventDescriptions()

    def __setattr__(self, name: str, descriptions: Mapping[str, Any]) -> None:
        super().__setattr__(name, EventDescriptions(descriptions))
