"""Text for people and logs, without credentials and without terminal control."""

import re

_HIDDEN = "***"
_LONGEST = 2000
# Patterns of credentials, wherever they stand, and what replaces them.
_CREDENTIALS = (
    (re.compile(r"(://)[^\s/@]+@"), rf"\1{_HIDDEN}@"),
    (re.compile(r"(://)[^\s@:]*:[^\s@]*@"), rf"\1{_HIDDEN}@"),  # with a slash in the password
    (re.compile(r"\bhf_[A-Za-z0-9]{8,}"), _HIDDEN),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}"), _HIDDEN),
    (re.compile(r"(?i)\b(bearer\s+)[\w.~+/=-]{8,}"), rf"\1{_HIDDEN}"),
    (
        re.compile(
            r"(?i)([?&][^=&\s]*(?:signature|token|secret|password|credential|key)[^=&\s]*=)"
            r"[^&\s'\"]+"
        ),
        rf"\1{_HIDDEN}",
    ),
)
# Control characters, marks of writing direction, line ends of Unicode, lone surrogates.
_OBEYED = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    """Make one line, as `one_line` does, with the middle left out if it is very long."""
    line = one_line(text)
    if len(line) > _LONGEST:
        line = f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"
    return line


def one_line(text: str) -> str:
    """Make one line: credentials hidden, control characters escaped."""
    return escaped(_hide(re.sub(r"\s*[\r\n]+\s*", " ", text.strip())))


def escaped(line: str) -> str:
    """Escape the characters of a line that a terminal would obey."""
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), line)


def is_unicode(name: str) -> bool:
    """Whether a name can be written as UTF-8; lone surrogates stand for other bytes."""
    return not re.search("[\ud800-\udfff]", name)


def has_credentials(url: str) -> bool:
    """Whether a URL carries a user, a password, a token or a signature."""
    _, _, rest = url.partition("://")
    # After a colon, a number is a port; anything else is a password, which may hold a slash.
    return re.match(r"[^/@]*@|[^/@:]*:(?!\d+(/|$))", rest) is not None or _hide(url) != url


def _hide(text: str) -> str:
    for pattern, kept in _CREDENTIALS:
        text = pattern.sub(kept, text)
    return text
