"""One row of a data set: a text, or a conversation."""

from typing import Any, NamedTuple

from schemas.errors import TextError


class Message(NamedTuple):
    """What one side says; the role is that of chat templates: system, user or assistant."""

    role: str
    content: str


class Conversation(NamedTuple):
    """Messages in order, which a model's chat template makes a text of."""

    messages: tuple[Message, ...]


Document = str | Conversation

_FIELDS = ("text", "messages", "conversations")
_PAIRS = (
    ("prompt", "response"),
    ("prompt", "completion"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("question", "answer"),
)
_INPUT = "input"  # what an Alpaca instruction is about
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}


def is_empty(document: Document) -> bool:
    """Whether a document has nothing to read in it."""
    if isinstance(document, str):
        return not document.strip()
    return not any(message.content.strip() for message in document.messages)


def columns(names: list[str], field: str | None) -> list[str]:
    """Return which columns of a table hold its documents; none if there are no such columns."""
    if field is not None:
        return [name for name in names if name == field]
    if found := [name for name in _FIELDS if name in names]:
        return found
    pair = next((pair for pair in _PAIRS if set(pair) <= set(names)), ())
    return [*pair, *([_INPUT] if pair and _INPUT in names else [])]


def document_of(row: object, field: str | None, where: str) -> Document:
    """Return the text or conversation of a row: under `field`, else under a name that says it.

    A text is "text"; a conversation "messages" or "conversations" (ShareGPT), or a pair such as
    "prompt" and "response". What is null is empty. Raises TextError, which begins with `where`.
    """
    names = list(row) if isinstance(row, dict) else []
    found = columns(names, field)
    if not isinstance(row, dict) or not found:
        there = f" (found {', '.join(map(repr, names))})" if names else ""
        raise TextError(
            f"{where}: no string under {field or 'text'!r}, and no conversation{there}; every row "
            "needs one; name another field after the text, as FILE#FIELD"
        )
    if field is not None or found[0] in _FIELDS:
        name = next((name for name in found if row[name] is not None), found[0])
        return _value(row[name], name, where)
    asked, answered, *about = found
    request = _side(row[asked], "user", asked, where)
    if about and len(request) == 1 and row[_INPUT]:
        more = _text(row[_INPUT], _INPUT, where)
        request = [Message("user", f"{request[0].content}\n\n{more}")]
    return Conversation((*request, *_side(row[answered], "assistant", answered, where)))


def _value(value: Any, name: str, where: str) -> Document:
    if isinstance(value, list):
        return Conversation(tuple(_messages(value, name, where)))
    return "" if value is None else _text(value, name, where)


def _side(value: Any, role: str, name: str, where: str) -> list[Message]:
    """Return one side of a pair: a text, or messages that it consists of."""
    if isinstance(value, list):
        return _messages(value, name, where)
    return [] if value is None else [Message(role, _text(value, name, where))]


def _messages(value: list[Any], name: str, where: str) -> list[Message]:
    found = []
    for item in value:
        message = item if isinstance(item, dict) else {}
        role, content = message.get("role"), message.get("content")
        if role is None and content is None:  # ShareGPT
            role, content = message.get("from"), message.get("value")
        if not isinstance(role, str):
            raise TextError(f"{where}: no messages under {name!r}; each needs a role and a content")
        if content is not None:
            found.append(Message(_ROLES.get(role, role), _text(content, name, where)))
    return found


def _text(value: Any, name: str, where: str) -> str:
    """Return a string; refuses lone surrogates, which JSON can hold."""
    if not isinstance(value, str):
        raise TextError(f"{where}: no string under {name!r}; every row needs one")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TextError(f"{where}: not valid Unicode ({error}); correct or drop it") from error
    return value
