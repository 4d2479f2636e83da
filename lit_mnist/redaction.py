"""Hides the passwords in URLs: none may appear in any output, file, tag or log."""

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
"""Shorter passwords are hidden only inside URLs: a password such as "pw" may occur as an ordinary word."""
# Greedy up to the last @: a password that should have been percent-encoded may itself hold an @ or a slash.
_IN_USER = re.compile(r"(\w://[^\s:/@]*):(\S*)@")
# The lookahead keeps the punctuation of a sentence that continues after the URL.
_IN_QUERY = re.compile(
    r"((?:password|passwd|pwd|token|secret)=)([^\s&#'\"]+?)(?=[:;,]?(?:[\s&#'\"]|$))", re.IGNORECASE
)


def redact_urls(text: str) -> str:
    """Replace the password of every `scheme://user:PASSWORD@host` and `?password=PASSWORD` in `text` by ***."""
    return _IN_QUERY.sub(rf"\1{HIDDEN}", _IN_USER.sub(rf"\1:{HIDDEN}@", text))


def redact(text: str) -> str:
    """Return `text` without the passwords in its URLs, and without those that this process knows, as whole words.

    A library may quote a password outside its URL, as psycopg does with a URL that it cannot parse. The known
    passwords are those in the environment variables that name the stores, and in this process's arguments.
    """
    text = redact_urls(text)
    for secret in _known_secrets():
        text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", HIDDEN, text)
    return text


def _known_secrets() -> Iterator[str]:
    found = {os.environ.get(name, "") for name in SECRET_VARIABLES}
    for url in (*(os.environ.get(name, "") for name in URL_VARIABLES), *sys.argv[1:]):
        # Group 2 of both patterns is the password.
        found |= {match[2] for pattern in (_IN_USER, _IN_QUERY) for match in pattern.finditer(url)}
    # The longest first: a password may contain another one.
    for secret in sorted(found, key=len, reverse=True):
        if len(secret) >= SHORTEST and secret != HIDDEN:
            yield secret
            if "%" in secret:
                # Imported here: most processes have no such password.
                from urllib.parse import unquote

                yield unquote(secret)
