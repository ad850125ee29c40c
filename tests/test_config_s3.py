"""A configuration that is at S3, as moto's server gives it."""

from __future__ import annotations

import json
import re
import signal
import sys

import boto3
import pytest
import requests
from conftest import ROOT, make_config
from moto.server import ThreadedMotoServer
from servers import Server
from test_reload import wait_for

from email_services.config import load_config
from email_services.exceptions import ConfigError

SOURCE = "s3://mail-settings/eu/config.json"
SECRET = "the-secret-key-at-aws"


@pytest.fixture(scope="module")
def moto():
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def put(moto, monkeypatch):
    """Put a text there."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", moto)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    requests.post(f"{moto}/moto-api/reset", timeout=5)
    client = boto3.client("s3")
    client.create_bucket(Bucket="mail-settings")

    def put(content: str | bytes):
        client.put_object(Bucket="mail-settings", Key="eu/config.json", Body=content)

    return put


def test_the_configuration_may_be_at_s3(put, tmp_path):
    put(json.dumps(make_config(tmp_path)))
    assert [*load_config(SOURCE).domains] == ["example.com", "example.net"]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("s3://mail-settings/us/config.json", "S3 says NoSuchKey"),
        ("s3://no-such-bucket/config.json", "S3 says NoSuchBucket"),
        ("s3://mail-settings", "it should be s3://bucket/key"),
        ("s3:///config.json", "it should be s3://bucket/key"),
        ("s3://b@d/config.json", "it could not be fetched (ParamValidationError)"),
    ],
)
def test_what_is_not_there_is_one_line(source, words, put):
    with pytest.raises(ConfigError, match=f"^{re.escape(f'{source}: {words}')}$"):
        load_config(source)


@pytest.mark.parametrize("content", [b"\xff", b"{", b"[]", b'{"root_api_key": 1}'])
def test_what_is_there_and_wrong_is_one_line(content, put):
    put(content)
    with pytest.raises(ConfigError) as caught:
        load_config(SOURCE)
    assert str(caught.value).startswith(f"{SOURCE}: ")
    assert "\n" not in str(caught.value)


def test_an_s3_that_cannot_be_reached_is_one_line_without_a_key(put, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    with pytest.raises(ConfigError) as caught:
        load_config(SOURCE)
    assert str(caught.value) == f"{SOURCE}: it could not be fetched (EndpointConnectionError)"
    assert SECRET not in str(caught.value)


def test_without_its_package_it_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(ConfigError, match=r"it needs boto3 \(pip install boto3\)$"):
        load_config(SOURCE)


def test_sighup_takes_over_what_is_there_now(put, tmp_path):
    put(json.dumps(make_config(tmp_path)))
    server = Server(tmp_path, {}, EMAIL_CONFIG=SOURCE, WEB_CONCURRENCY="1")
    try:
        put(json.dumps(make_config(tmp_path, message_retention_days=3, production=True)))
        server.process.send_signal(signal.SIGHUP)
        # In production a listing needs a key.
        wait_for(lambda: requests.get(server.url, timeout=30).status_code == 401)
        assert requests.get(server.url, headers=ROOT, timeout=30).status_code == 200
        assert SECRET not in server.log
    finally:
        server.kill()
