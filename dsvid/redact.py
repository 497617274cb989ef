"""Secrets out of texts that are kept: values of variables whose name says so, and passwords in addresses."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

# Whole words between underscores, the long ones also behind others (PGPASSWORD, AUTHTOKEN): COMPASS_DIR, KEYBOARD and
# TOKENIZERS_PARALLELISM hold no secrets.
SECRET_NAME = re.compile(
    r"(?:^|_)(?:PASS|SSHPASS|KEY|[A-Z]*(?:PASSWD|PASSWORD|PASSPHRASE|TOKEN|SECRET|(?:API|ACCESS|SECRET|PRIVATE)KEY))"
    r"(?:E?S)?\d*(?:_|$)",
    re.IGNORECASE,
)
# one slash is left where an address went through pathlib
PASSWORD = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*:/{1,2}[^/\s:@'\"]*:)[^/\s@'\"]+@")
SHORTEST = 4  # what is shorter stands everywhere, and would be hidden everywhere
SWITCHES = ("true", "false", "none", "null")  # HF_HUB_DISABLE_IMPLICIT_TOKEN=true
HIDDEN = "***"


def redact(text: str, environment: Mapping[str, str] | None = None) -> str:
    """`text` without the values of secret variables of `environment` (default: the process's) and without passwords.

    A variable is secret where a word of its name, between underscores, is KEY, APIKEY, TOKEN, SECRET, PASS, PASSWD,
    PASSWORD or PASSPHRASE, or their plural, and its value has 4 characters or more.
    """
    known = os.environ if environment is None else environment
    values = {value for name, value in known.items() if len(value) >= SHORTEST and SECRET_NAME.search(name)}
    values = {value for value in values if value.lower() not in SWITCHES}
    for value in sorted(values, key=len, reverse=True):  # a secret may hold another one
        text = text.replace(value, HIDDEN)
    return PASSWORD.sub(rf"\1{HIDDEN}@", text)
