"""Secrets leave every text, and nothing else does."""

from __future__ import annotations

import copy
import time

import pytest

from raybrew.secrets import scrub, scrub_message

FORTY_HEX = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "MY_TOKEN", "AWS_SECRET_ACCESS", "DB_PASSWORD", "X_CREDENTIALS_1"])
def test_values_of_secret_variables_go_wherever_they_stand(name: str) -> None:
    environ = {name: "hunter2hunter2", "HOME": "/home/someone"}
    value = {
        "a": ["x hunter2hunter2 y", ("hunter2hunter2",)],
        "hunter2hunter2": {"hunter2hunter2"},
        "home": "/home/someone",
    }
    assert scrub(value, environ) == {"a": ["x *** y", ("***",)], "***": {"***"}, "home": "/home/someone"}


def test_short_values_and_harmless_names_stay() -> None:
    environ = {"TOKENIZERS_PARALLELISM": "false", "KEY": "short", "EDITOR": "nano-editor"}
    assert scrub("false short nano-editor", environ) == "false short nano-editor"


def test_a_secret_inside_a_longer_secret_leaves_no_rest() -> None:
    environ = {"A_KEY": "a1b2c3d4", "B_KEY": "a1b2c3d4-and-more"}
    assert scrub("a1b2c3d4-and-more a1b2c3d4", environ) == "*** ***"


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "very-private-value")
    assert scrub("x=very-private-value") == "x=***"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://user:pass@host/path", "https://***@host/path"),
        ("https://token@host.example/x.git", "https://***@host.example/x.git"),
        ("see s3://key:se@cret@bucket/a and https://host/b", "see s3://***@bucket/a and https://host/b"),
        ("/here/s3:/KEY:SEC/RET@bucket/a", "/here/s3:/***@bucket/a"),  # a URL that was taken for a path
        ("/here/https:/token@host/x.git and http:/host/a@b", "/here/https:/***@host/x.git and http:/host/a@b"),
        ("https://host/a?X-Amz-Signature=abc&x=1", "https://host/a?X-Amz-Signature=***&x=1"),
        ("https://host/a@b and someone@example.org", "https://host/a@b and someone@example.org"),
        ("hf_abcdefghijklmnopqrstuvwxyz", "***"),
        ("ghp_abcdefghijklmnopqrstuvwxyz0123 done", "*** done"),
        ("Authorization: Bearer abcdef0123456789", "Authorization: ***"),
        ("WANDB_API_KEY=abc raybrew distill", "WANDB_API_KEY=*** raybrew distill"),
        ("raybrew submit --api-key abc --name x", "raybrew submit --api-key *** --name x"),
        ("password: 'abc def'", "password: ***"),
        ('{"api_key": "abc def", "x": 1}', '{"api_key": ***, "x": 1}'),
        ("api_key: null\nsecret: ~\npassword: nullable\n", "api_key: null\nsecret: ~\npassword: ***\n"),
        (f"key: {FORTY_HEX}", "key: ***"),
        (f"commit: {FORTY_HEX}", f"commit: {FORTY_HEX}"),
        ("raybrew distill a.yaml train.seed=1 store.batch_tokens=8192", None),
        ("tokenizer: bert\nbatch_tokens: 8192\nmask_token: '[MASK]'\nid_column: x\n", None),
        ("hidden_mse 2e-05 runs/distill-0123456789/student", None),
    ],
)
def test_texts(text: str, expected: str | None) -> None:
    found = scrub(text, {})
    if text.startswith("Authorization"):
        assert "abcdef0123456789" not in found
    else:
        assert found == (text if expected is None else expected)


@pytest.mark.parametrize("part", ["x", "a.", "?", "--a", "a://", "s3://a:", "token= ", "password='", "sk-", "a://b@"])
def test_long_texts_take_no_time(part: str) -> None:
    """Each position of a text is a place where a secret may begin, so that a slip makes the time its square."""
    start = time.process_time()
    scrub(part * (20_000 // len(part)), {})
    assert time.process_time() - start < 2


def test_what_a_sentence_says_about_a_key_stays() -> None:
    sentence = "--env WANDB_API_KEY: looks like a secret; WANDB_API_KEY=abc hf_" + "a1" * 15
    assert scrub_message(sentence) == "--env WANDB_API_KEY: looks like a secret; WANDB_API_KEY=*** ***"


def test_values_under_secret_names() -> None:
    value = {
        "password": "abc",
        "wandb_api_key": "abc",
        "key": FORTY_HEX,
        "token": FORTY_HEX,
        "fingerprint": FORTY_HEX,
        "mask_token": "[MASK]",
        "api_key": None,
        "max_tokens": 12,
    }
    hidden = {"password", "wandb_api_key", "key", "token"}
    assert scrub(value, {}) == {name: "***" if name in hidden else item for name, item in value.items()}


def test_other_values_and_the_argument_stay_as_they_are() -> None:
    value = {"a": [1, 2.5, True, None], "b": (b"hunter2hunter2", "hunter2hunter2")}
    before = copy.deepcopy(value)
    found = scrub(value, {"X_KEY": "hunter2hunter2"})
    assert found == {"a": [1, 2.5, True, None], "b": (b"hunter2hunter2", "***")}
    assert value == before
