"""JSON in and out: every malformed input becomes one of our own errors, with a sentence that names the field.

msgspec raises four different exceptions for strangers' bytes: `DecodeError`, `ValidationError` (its subclass),
`UnicodeDecodeError` for invalid UTF-8 in a string that it builds, `RecursionError` for deep nesting. It does not look
inside a value kept as `msgspec.Raw`, so UTF-8 is checked over the whole input first.
"""

from typing import Any, TypeVar

import msgspec

from protocol.errors import BridgeError, InvalidRequest

T = TypeVar("T")

EMPTY_OBJECT = msgspec.Raw(b"{}")
MAX_NESTING = 64
_MAX_SENTENCE_CHARS = 300

encode = msgspec.json.Encoder().encode
_decode_any = msgspec.json.Decoder().decode


def decode(decoder: msgspec.json.Decoder[T], data: bytes, error: type[BridgeError] = InvalidRequest) -> T:
    """Decode strangers' bytes; raise `error` where they are not what `decoder` expects."""
    try:
        if not data.isascii():
            data.decode()
        return decoder.decode(data)
    except msgspec.ValidationError as exc:
        raise error(_sentence(str(exc))) from exc
    except UnicodeDecodeError as exc:
        raise error("the message is not valid UTF-8") from exc
    except RecursionError as exc:
        raise error("the message is nested too deeply") from exc
    except msgspec.DecodeError as exc:
        raise error("the message is not valid JSON") from exc


def decode_value(data: bytes | msgspec.Raw, error: type[BridgeError] = InvalidRequest) -> Any:
    """Decode an open JSON value (parameters, a schema) to plain Python objects; raise `error` where it is none."""
    try:
        return _decode_any(data)
    except RecursionError as exc:
        raise error("the value is nested too deeply") from exc
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise error("the value is not valid JSON") from exc


def raw_bytes(raw: msgspec.Raw) -> bytes:
    """Return the bytes of a raw value, as they stood in the message."""
    return bytes(memoryview(raw))


def is_object(raw: msgspec.Raw) -> bool:
    """Tell whether a raw value, which msgspec has already found to be well formed, is a JSON object."""
    return bytes(memoryview(raw)[:1]) == b"{"


def require_shallow(value: Any, where: str, error: type[BridgeError] = InvalidRequest) -> None:
    """Raise `error` where a decoded value is nested more than 64 levels deep.

    How deep msgspec can go depends on how deep the Python stack already is: what one process has barely read, the next
    one may not be able to. What is stored or passed on in a batch with others' data must stay far from that edge.
    """
    level = [value]
    for _ in range(MAX_NESTING + 1):
        containers = [item for item in level if isinstance(item, dict | list)]
        if not containers:
            return
        level = [inner for item in containers for inner in (item.values() if isinstance(item, dict) else item)]
    raise error(f"{where}: nested more than {MAX_NESTING} levels deep")


def _sentence(text: str) -> str:
    """Turn msgspec's "Expected `str`, got `null` - at `$.target`" into "`target`: expected `str`, got `null`"."""
    what, _, path = text.partition(" - at ")
    field = path.strip("`").removeprefix("$").removeprefix(".")
    what = what[:1].lower() + what[1:]
    sentence = f"`{field}`: {what}" if field else what
    return sentence if len(sentence) <= _MAX_SENTENCE_CHARS else f"{sentence[:_MAX_SENTENCE_CHARS]}…"
