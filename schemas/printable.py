"""Text for people and logs: no credential in it, and nothing that a terminal obeys."""

import re

_HIDDEN = "***"
_LONGEST = 2000
# What a credential looks like wherever it stands, and what to leave of it.
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
# Control characters, what turns the direction of writing, line ends of Unicode, lone surrogates.
_OBEYED = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    """One line: credentials hidden, what a terminal would obey as its escape, the middle left out
    where it is very long.
    """
    line = escaped(_hide(re.sub(r"\s*[\r\n]+\s*", " ", text.strip())))
    if len(line) > _LONGEST:
        line = f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"
    return line


def escaped(line: str) -> str:
    """A line with what a terminal would obey as its escape."""
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), line)


def is_unicode(name: str) -> bool:
    """Whether a name can be written as UTF-8; one of other bytes has lone surrogates."""
    return not re.search("[\ud800-\udfff]", name)


def has_credentials(url: str) -> bool:
    """Whether a URL carries a user, a password, a token or a signature."""
    _, _, rest = url.partition("://")
    # A port is a number; what else follows a colon is a password, which may hold a slash.
    return re.match(r"[^/@]*@|[^/@:]*:(?!\d+(/|$))", rest) is not None or _hide(url) != url


def _hide(text: str) -> str:
    for pattern, kept in _CREDENTIALS:
        text = pattern.sub(kept, text)
    return text
