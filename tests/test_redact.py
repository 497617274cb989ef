"""Secrets do not come through, and nothing else is touched."""

from __future__ import annotations

import pytest

from dsvid.redact import redact

SECRETS = {
    "WANDB_API_KEY": "0123abcdef",
    "hf_token": "hf_longtoken",
    "MY_SECRET": "hf_longtoken_and_more",
    "DB_PASSWORD": "hunter2hunter2",
    "TOKENIZERS_PARALLELISM": "false",
    "HOME": "/home/someone",
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("key 0123abcdef.", "key ***."),
        ("hf_longtoken_and_more hf_longtoken", "*** ***"),
        ("--password=hunter2hunter2", "--password=***"),
        ("flip=false in /home/someone", "flip=false in /home/someone"),
        ("get https://me:pass:word@host:80/x and s3://a@b", "get https://me:***@host:80/x and s3://a@b"),
        ("https:/me:pw@host/list.csv", "https:/me:***@host/list.csv"),
        ("at 10:00 mail a@b", "at 10:00 mail a@b"),
        ("tcp://host:29500 and user@host", "tcp://host:29500 and user@host"),
        ("", ""),
    ],
)
def test_what_is_hidden(text: str, expected: str) -> None:
    assert redact(text, SECRETS) == expected


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        *((name, True) for name in ("KEY", "wandb_apikey", "API_KEYS", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "TOKENS")),
        *((name, True) for name in ("PASS", "DB_PASSWD", "Ssh_Passphrase", "PASSWORD_FILE", "PASSES", "SECRETS_1")),
        *((name, True) for name in ("PGPASSWORD", "SSHPASS", "MY_AUTHTOKEN", "SECRETKEY")),
        *((name, False) for name in ("COMPASS_DIR", "KEYBOARD", "TOKENIZERS_PARALLELISM", "BYPASS", "MONKEY_SEE", "")),
    ],
)
def test_names_of_secrets_are_whole_words(name: str, secret: bool) -> None:
    assert redact("lies in /data/compass", {name: "/data/compass"}) == (
        "lies in ***" if secret else "lies in /data/compass"
    )
    assert redact("1 of abc is true", {name: "abc", f"A_{name}": "true"}) == "1 of abc is true"


def test_the_process_s_own_variables_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "quite-secret")
    assert redact("a quite-secret thing") == "a *** thing"
