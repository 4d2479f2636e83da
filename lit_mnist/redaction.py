"""Passwords in URLs, which must appear in no output, file, tag or log."""

import os
import re
import sys
from collections.abc import Iterator

HIDDEN = "***"
SECRET_VARIABLES = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
"""Environment variables whose whole value is a secret."""
URL_VARIABLES = ("MLFLOW_TRACKING_URI", "LIT_MNIST_STORAGE")
"""Environment variables whose value is a URL that may hold a password."""
SHORTEST = 4
"""Characters below which a password is hidden only inside a URL: "a" or "pw" stand in too many other words."""
# Greedy up to the last @: a password that should have been percent-encoded may itself hold an @ or a slash.
_IN_USER = re.compile(r"(\w://[^\s:/@]*):(\S*)@")
# Without the punctuation with which a sentence goes on.
_IN_QUERY = re.compile(
    r"((?:password|passwd|pwd|token|secret)=)([^\s&#'\"]+?)(?=[:;,]?(?:[\s&#'\"]|$))", re.IGNORECASE
)


def redact_urls(text: str) -> str:
    """`text` with the password of every `scheme://user:PASSWORD@host` and `?password=PASSWORD` replaced by ***."""
    return _IN_QUERY.sub(rf"\1{HIDDEN}", _IN_USER.sub(rf"\1:{HIDDEN}@", text))


def redact(text: str) -> str:
    """As `redact_urls`, but also hides the passwords that this process knows where they stand alone.

    A library may quote a password by itself (psycopg does where it cannot split a URL). Known are those in the
    environment variables that name the stores, and in this process's arguments; they are hidden as whole words.
    """
    text = redact_urls(text)
    for secret in _known_secrets():
        text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", HIDDEN, text)
    return text


def _known_secrets() -> Iterator[str]:
    found = {os.environ.get(name, "") for name in SECRET_VARIABLES}
    for url in (*(os.environ.get(name, "") for name in URL_VARIABLES), *sys.argv[1:]):
        found |= {match[2] for pattern in (_IN_USER, _IN_QUERY) for match in pattern.finditer(url)}
    for secret in sorted(found, key=len, reverse=True):
        if len(secret) >= SHORTEST and secret != HIDDEN:
            yield secret
            if "%" in secret:
                # Imported here: most processes have no such password.
                from urllib.parse import unquote

                yield unquote(secret)
