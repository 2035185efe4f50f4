"""JSON-RPC 2.0 as the data of `rpc` events: values in, values out.

Servers and clients call it: `Methods` turns a request into its response, and the functions below make requests and read
responses. It knows no socket and no thread, and what a peer sends must never make it raise. Batches are answered and not
made: an event is cheap, and calls of several threads are under way at once anyway.
"""

from __future__ import annotations

from json import dumps
from typing import TYPE_CHECKING, Any, Callable, Dict, Mapping, Optional, Sequence, Tuple

from .errors import RemoteError
from .reentry import calls_out

if TYPE_CHECKING:  # imported by who adds a method: it takes 10 ms
    from inspect import Signature

# The type of the events that carry it.
EVENT = 'rpc'

# What there is to say in answer to notifications and to responses.
NOTHING: Any = type('Nothing', (), {'__repr__': lambda self: 'NOTHING'})()

INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
# Of the range that is left to implementations: a method has raised something that says no code.
METHOD_FAILED = -32000

# The specification asks for an error for each member that is no request, and 2 bytes are enough for one: without a limit,
# 64 MiB would be answered with 3 GB.
_MAX_BATCH = 1 << 16

# Of a message of an error, of a name in one, and of an exception's text.
_MAX_MESSAGE_CHARACTERS = 2000
_MAX_EXCERPT_CHARACTERS = 100

# Integers that every JSON library reads as they are, JavaScript's too.
_MAX_CODE = (1 << 53) - 1

_NO_PARAMS: Tuple[Any, ...] = ()

Failed = Callable[[BaseException], Any]


class Methods:
    """What an endpoint answers calls with: functions by name. Methods may be added while others are running.

    >>> methods = Methods()
    >>> methods.add('subtract', lambda minuend, subtrahend: minuend - subtrahend)
    >>> methods.answer({'jsonrpc': '2.0', 'method': 'subtract', 'params': [42, 23], 'id': 1}, None, print)
    {'jsonrpc': '2.0', 'result': 19, 'id': 1}
    """

    __slots__ = ('_methods',)

    def __init__(self) -> None:
        self._methods: Dict[str, _Method] = {}

    def __len__(self) -> int:
        return len(self._methods)

    def add(self, name: str, function: Callable[..., Any]) -> None:
        """Answer calls of `name` with what `function` returns; a name that there is already gets a new function.

        A keyword-only parameter of it that is called `socket` is given the caller. Raises TypeError for what is no
        function, for a coroutine function or a generator function, and for a name that is no string; ValueError for an
        empty name and for one that begins with ``rpc.``, which the specification reserves.
        """
        if not isinstance(name, str):
            raise TypeError(f'the name of a method must be a str, not {name.__class__.__name__}: {name!r}')
        if not name:
            raise ValueError('the name of a method must not be empty')
        if name.startswith('rpc.'):
            raise ValueError(f'the method {name!r} needs another name: JSON-RPC reserves those that begin with "rpc."')
        self._methods[name] = _Method(function)

    def answer(self, data: Any, socket: Any, failed: Failed) -> Any:
        """Do what the `data` of an event asks for; return the data of the event that answers it, or NOTHING. Never raises.

        `socket` is given to the methods that want it. `failed` is called with each exception of a method that is not a
        RemoteError, its way to refuse: the caller of the method is told no more than its class and its message.
        """
        try:
            if not isinstance(data, list):
                return self._answer_one(data, socket, failed)
            if not data:
                return _NO_BATCH
            if len(data) > _MAX_BATCH:
                return _error(None, INVALID_REQUEST, f'Invalid Request: a batch has at most {_MAX_BATCH} members')
            answers = [self._answer_one(member, socket, failed) for member in data]
            return [answer for answer in answers if answer is not NOTHING] or NOTHING
        except BaseException:  # MemoryError
            return _INTERNAL_ERROR

    def _answer_one(self, data: Any, socket: Any, failed: Failed) -> Any:
        if not isinstance(data, dict):
            return _NO_OBJECT
        if 'method' not in data and ('result' in data or 'error' in data):
            return NOTHING  # a response. If nobody waits for it, it is late, or it is malformed and no reason for another
        refusal = _why_invalid(data)
        if refusal:
            # The caller need not wait for its timeout, if this is a call; else its id may be one of our own calls.
            id = data.get('id') if 'method' in data else None
            return _error(id if _is_id(id) else None, INVALID_REQUEST, f'Invalid Request: {refusal}')
        method = self._methods.get(data['method'])
        outcome: Dict[str, Any]
        if method is None:
            outcome = {'error': _error_object(METHOD_NOT_FOUND, f'Method not found: {_excerpt(data["method"])}')}
        else:
            try:
                outcome = method.outcome(data.get('params', _NO_PARAMS), socket, failed)
            except BaseException:  # a RemoteError without code, which is its method's defect; MemoryError
                outcome = _INTERNAL_ERROR
        return {'jsonrpc': '2.0', **outcome, 'id': data['id']} if 'id' in data else NOTHING


class _Method:
    """A function, and what can be said of its arguments before it is called."""

    __slots__ = ('_function', '_max_positional', '_min_positional', '_signature', '_wants_socket')

    def __init__(self, function: Callable[..., Any]) -> None:
        import inspect

        if not callable(function):
            raise TypeError(f'a method must be callable, not {function!r}')
        for plain in (function, type(function).__call__):  # an object may be one by its __call__
            if inspect.iscoroutinefunction(plain) or inspect.isasyncgenfunction(plain):
                raise TypeError(f'a method must be a plain function, not the coroutine function {function!r}')
            if inspect.isgeneratorfunction(plain):
                raise TypeError(f'a method must return its result, not yield it as {function!r} does; return a list')
        self._function = function
        self._wants_socket = False
        # None: it does not tell, as some built-in functions.
        self._signature: Optional[Signature] = None
        # As many positional arguments fit without a closer look.
        self._min_positional, self._max_positional = 1, 0
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):
            return
        parameters = list(signature.parameters.values())
        for parameter in parameters:
            if parameter.name == 'socket' and parameter.kind is parameter.KEYWORD_ONLY:
                self._wants_socket = True
                parameters.remove(parameter)
                break
        self._signature = signature.replace(parameters=parameters)
        if all(parameter.kind is parameter.POSITIONAL_OR_KEYWORD for parameter in parameters):
            self._min_positional = sum(parameter.default is parameter.empty for parameter in parameters)
            self._max_positional = len(parameters)

    @calls_out
    def outcome(self, params: Any, socket: Any, failed: Failed) -> Dict[str, Any]:
        """Call the function; return the member `result` or `error` of a response."""
        positional, named = (_NO_PARAMS, params) if isinstance(params, dict) else (params, {})
        if named or not self._min_positional <= len(positional) <= self._max_positional:
            misfit = self._misfit(positional, named)
            if misfit:
                return {'error': _error_object(INVALID_PARAMS, f'Invalid params: {misfit}')}
        if self._wants_socket:
            named = {**named, 'socket': socket}
        try:
            return {'result': self._function(*positional, **named)}
        except RemoteError as error:
            return {'error': _error_object(error.code, error.message, error.data)}
        except BaseException as error:  # SystemExit too: a method does not end the thread it is lent
            if self._signature is None and isinstance(error, TypeError):  # most likely of the arguments, then
                return {'error': _error_object(INVALID_PARAMS, f'Invalid params: {_text(error)}')}
            failed(error)
            name = error.__class__.__name__
            text = _text(error)
            return {'error': _error_object(METHOD_FAILED, f'{name}: {text}' if text else name)}

    def _misfit(self, positional: Sequence[Any], named: Mapping[str, Any]) -> Optional[str]:
        """Why the function does not take these arguments, before a TypeError could come from inside it."""
        if self._wants_socket and 'socket' in named:
            return "got an unexpected keyword argument 'socket'"
        if self._signature is not None:
            try:
                self._signature.bind(*positional, **named)
            except TypeError as error:
                return _text(error)
        return None


def request(method: str, params: Sequence[Any], named: Mapping[str, Any], id: Optional[int]) -> Dict[str, Any]:
    """Return a call of `method`, or a notification if `id` is None.

    Raises TypeError for a name that is no string, and for both positional and named params: JSON-RPC has either.

    >>> request('subtract', (42, 23), {}, 1)
    {'jsonrpc': '2.0', 'method': 'subtract', 'params': [42, 23], 'id': 1}
    """
    if not isinstance(method, str):
        raise TypeError(f'the name of a method must be a str, not {method.__class__.__name__}: {method!r}')
    if params and named:
        raise TypeError(f'{method}(): JSON-RPC takes either positional or named parameters, not both')
    call: Dict[str, Any] = {'jsonrpc': '2.0', 'method': method}
    if params:
        call['params'] = list(params)
    elif named:
        call['params'] = dict(named)
    if id is not None:
        call['id'] = id
    return call


def responses(data: Any) -> Sequence[Mapping[str, Any]]:
    """Return the responses in the `data` of an event, each with an `id` that can be looked up. For the reactor thread.

    A response that is not quite as it should be is one, too, so that the call that it answers fails at once and not with
    its timeout; `result` is strict.

    >>> responses({'jsonrpc': '2.0', 'result': 19, 'id': 1})
    ({'jsonrpc': '2.0', 'result': 19, 'id': 1},)
    """
    if isinstance(data, dict):
        return (data,) if _is_response(data) else ()
    if isinstance(data, list) and len(data) <= _MAX_BATCH:
        return [member for member in data if isinstance(member, dict) and _is_response(member)]
    return ()


def result(response: Mapping[str, Any], who: str) -> Any:
    """Return the result of a response, or raise its error as RemoteError; `who` has sent it.

    >>> result({'jsonrpc': '2.0', 'result': 19, 'id': 1}, 'world')
    19
    """
    error = response.get('error')
    if error is None and 'result' in response:  # JSON-RPC 1.0 has both, one of them null
        return response['result']
    if not isinstance(error, dict):
        raise RemoteError(INTERNAL_ERROR, f'{who} answered with a malformed error: {_excerpt(error)}', error)
    code, message = error.get('code'), error.get('message')
    if code.__class__ is float and code.is_integer():
        code = int(code)
    if code.__class__ is not int or not isinstance(message, str):
        malformed = f'{who} answered with a malformed error, code {_excerpt(code)} and message {_excerpt(message)}'
        raise RemoteError(code if code.__class__ is int else INTERNAL_ERROR, malformed, error)
    if response.get('result') is not None:
        raise RemoteError(code, f'{who} answered with both a result and an error: {message}', error.get('data'))
    raise RemoteError(code, message, error.get('data'))


def is_request(data: Any) -> bool:
    """Whether this is JSON-RPC 2.0 for sure, and its sender waits for an answer, be it that there are no methods here."""
    if isinstance(data, list):
        return any(_is_call(member) for member in data)
    return _is_call(data)


def unsendable(response: Any, error: BaseException) -> Any:
    """Return what can be sent in place of a `response` that `Methods.answer` made and `emit` refused with `error`.

    Of a batch, the responses that JSON can carry stay as they are, unless it can carry all of them and there is too much.
    What this returns cannot be sent either if the caller's id is nearly as long as a message may be.
    """
    if not isinstance(response, list):
        return _without_value(response, error)
    bad = [not _is_json(member) for member in response]
    everything = not any(bad)
    return [_without_value(member, error) if everything or is_bad else member for member, is_bad in zip(response, bad)]


def _without_value(response: Dict[str, Any], error: BaseException) -> Dict[str, Any]:
    """`response` as an error without data."""
    code, message = INTERNAL_ERROR, f'Internal error: the result cannot be sent: {_text(error)}'
    if 'error' in response:
        code, message = response['error']['code'], response['error']['message']
    return _error(response['id'], code, message)


def _is_json(value: Any) -> bool:
    try:
        dumps(value, allow_nan=False)
    except Exception:  # RecursionError and what properties of a str subclass raise, too
        return False
    return True


def _is_response(data: Dict[str, Any]) -> bool:
    # Not None, with which peers answer what they cannot make out, and no bool: True == 1.
    return 'method' not in data and ('result' in data or 'error' in data) and data.get('id').__class__ in (int, float, str)


def _is_call(data: Any) -> bool:
    return isinstance(data, dict) and 'id' in data and not _why_invalid(data)


def _why_invalid(data: Dict[str, Any]) -> str:
    """What keeps `data` from being a request or a notification; empty if it is one."""
    if data.get('jsonrpc') != '2.0':
        return '"jsonrpc" must be "2.0"'
    if not isinstance(data.get('method'), str):
        return '"method" must be a string'
    if not isinstance(data.get('params', _NO_PARAMS), (list, dict, tuple)):
        return '"params" must be an array or an object'
    if not _is_id(data.get('id')):
        return '"id" must be a string, a number or null'
    return ''


def _is_id(id: Any) -> bool:
    if id.__class__ is float:
        return bool(id - id == 0)  # 1e999 is valid JSON, and infinite in Python, which could not send it back
    return id is None or id.__class__ in (int, str)


def _error(id: Any, code: int, message: str) -> Dict[str, Any]:
    return {'jsonrpc': '2.0', 'error': _error_object(code, message), 'id': id}


def _error_object(code: Any, message: Any, data: Any = None) -> Dict[str, Any]:
    """The member `error` of a response. Any `code` and `message`: they may be an application's."""
    if not isinstance(code, int) or isinstance(code, bool) or abs(code) > _MAX_CODE:
        code = METHOD_FAILED
    error = {'code': int(code), 'message': _text(message)}
    if data is not None:
        error['data'] = data
    return error


def _text(value: Any) -> str:
    try:
        text = str(value)
    except BaseException:  # __str__ is the application's
        return ''
    return text if len(text) <= _MAX_MESSAGE_CHARACTERS else text[:_MAX_MESSAGE_CHARACTERS] + '...'


def _excerpt(value: Any) -> str:
    """What a peer sent, as it is shown in messages."""
    if isinstance(value, (list, dict)):  # whose repr may be as long as a message, or recurse too deep
        return 'an array' if isinstance(value, list) else 'an object'
    text = repr(value[:_MAX_EXCERPT_CHARACTERS] if isinstance(value, str) else value)
    cut = len(value if isinstance(value, str) else text) > _MAX_EXCERPT_CHARACTERS
    return text[:_MAX_EXCERPT_CHARACTERS] + '...' if cut else text


# Made once: a batch may have many members that are not even objects. Never changed.
_NO_OBJECT = _error(None, INVALID_REQUEST, 'Invalid Request: it must be an object, or a batch of objects')
_NO_BATCH = _error(None, INVALID_REQUEST, 'Invalid Request: a batch must not be empty')
_INTERNAL_ERROR = _error(None, INTERNAL_ERROR, 'Internal error')
