from __future__ import annotations

import logging
import re
import subprocess
import sys
from email.header import decode_header, make_header
from typing import Any

import boto3
import pytest
import requests
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from contract import JSON, PROVIDER_KEY, Contract, data_of, in_json, make_message, outcome_of
from messages import MESSAGES, NEXT_YEAR, PDF, PLAIN
from standins import answer, answer_json, reset

from email_services.abstract import Standing
from email_services.exceptions import (
    AccountRefused,
    CannotCarry,
    MessageRejected,
    OutcomeUnknown,
    RateLimited,
    ServiceUnavailable,
)
from email_services.message import MEGABYTE, EmailMessage
from email_services.providers.amazon_ses import AmazonSES, AmazonSESSettings, _parameters

TOKEN = "token-of-a-temporary-key"
SETTINGS = {
    "access_key_id": "AKIDEXAMPLE",
    "secret_access_key": PROVIDER_KEY,
    "session_token": TOKEN,
    "region": "eu-west-1",
}
BOTO = {"region_name": "eu-west-1", "aws_access_key_id": "AKID", "aws_secret_access_key": "key"}


def refusal(status, code, text):
    return in_json(status, {"message": text}, {"x-amzn-ErrorType": code})


QUOTA = "Daily message quota exceeded."
RATE = "Maximum sending rate exceeded."
PAUSED = (
    "Sending paused for this account. For more information, please check the inbox of the email "
    "address associated with your AWS account."
)
UNVERIFIED = (
    "Email address is not verified. The following identities failed the check in region "
    "EU-WEST-1: me@example.com, Ada <ada@example.org>"
)

CONTRACT = Contract(
    accepted=(200, {**JSON, "x-amzn-RequestId": "a-b"}, b'{"MessageId": "0102018e-1-000000"}'),
    message_id="0102018e-1-000000",
    without_id=[b'{"MessageId": null}', b'{"MessageId": 7}'],
    secrets={"x-amz-security-token": TOKEN},
    error=lambda text: {"message": text},
    settings=SETTINGS,
    moving=("authorization", "x-amz-date"),
    answers={
        "quota": (refusal(429, "TooManyRequestsException", QUOTA), AccountRefused),
        "rate": (refusal(429, "TooManyRequestsException", RATE), RateLimited),
        "quota, as throttling": (refusal(400, "ThrottlingException", QUOTA), AccountRefused),
        "rate, as throttling": (refusal(400, "ThrottlingException", RATE), RateLimited),
        "too many calls": (refusal(400, "Throttling", "Rate exceeded"), RateLimited),
        "an address": (refusal(400, "BadRequestException", "Illegal address"), MessageRejected),
        "content": (refusal(400, "MessageRejected", "Unsupported file type"), MessageRejected),
        "not verified": (refusal(400, "MessageRejected", UNVERIFIED), AccountRefused),
        "MAIL FROM": (
            refusal(400, "MailFromDomainNotVerifiedException", "Not ready."),
            AccountRefused,
        ),
        "suspended": (refusal(400, "AccountSuspendedException", "Suspended."), AccountRefused),
        "paused": (refusal(400, "SendingPausedException", "Paused."), AccountRefused),
        "paused, in words": (refusal(400, "MessageRejected", PAUSED), AccountRefused),
        "paused, in v1's words": (
            refusal(400, "AccountSendingPausedException", "Email sending is disabled."),
            AccountRefused,
        ),
        "paused, as an address": (
            refusal(400, "BadRequestException", "Illegal address sending.paused@example.org"),
            MessageRejected,
        ),
        "a quota, as an address": (
            refusal(400, "BadRequestException", "Illegal 'daily message quota'@example.org"),
            MessageRejected,
        ),
        "limit": (refusal(400, "LimitExceededException", "Too many."), AccountRefused),
        "not allowed": (refusal(400, "AccessDeniedException", "No."), AccountRefused),
        "a wrong clock": (refusal(400, "RequestExpired", "Too old."), AccountRefused),
        "a wrong key id": (
            refusal(403, "UnrecognizedClientException", "The security token is invalid."),
            AccountRefused,
        ),
        "a configuration set": (
            refusal(404, "NotFoundException", "Configuration set is missing."),
            AccountRefused,
        ),
        "its fault": (refusal(500, "InternalFailure", "Sorry."), ServiceUnavailable),
        "too late": (refusal(408, "RequestTimeoutException", "Too slow."), ServiceUnavailable),
        "another's empty answer": ((200, {}, b""), OutcomeUnknown),
    },
    our_ids=lambda body: [data_of(body["EmailTags"])["mailpool_id"]],
    looks={
        "good": (
            [
                in_json(
                    200,
                    {"VerifiedForSendingStatus": True, "DkimAttributes": {"Tokens": ["a1", "b2"]}},
                )
            ],
            Standing(account=True, domain=True, dkim=("a1", "b2")),
        ),
        "not verified": (
            [in_json(200, {"VerifiedForSendingStatus": False})],
            Standing(account=True, domain=False),
        ),
        "no such identity": (
            [in_json(404, {}, {"X-Amzn-ErrorType": "NotFoundException"})],
            Standing(account=True, note="There is no identity of this name in the region."),
        ),
        "a key that may only send": (
            [in_json(403, {}, {"X-Amzn-ErrorType": "AccessDeniedException"})],
            Standing(account=True, note="The key may not ses:GetEmailIdentity."),
        ),
        "a wrong key": (
            [in_json(403, {}, {"X-Amzn-ErrorType": "InvalidSignatureException"})],
            AccountRefused,
        ),
    },
)


def make_ses(base_url=None, **settings) -> AmazonSES:
    settings = {**SETTINGS, "priority_value": 1, "base_url": base_url, **settings}
    return AmazonSES("amazon_ses", "example.com", AmazonSESSettings.model_validate(settings))


def boto_client(**options):
    config = Config(retries={"total_max_attempts": 1})
    return boto3.client("sesv2", config=config, **BOTO, **options)


def carried():
    """The messages that are for SES, by name."""
    for name, fields in MESSAGES.items():
        message = make_message(**fields).rendered()
        try:
            make_ses().check(message)
        except CannotCarry:
            continue
        yield name, message


CARRIED = dict(carried())
every_message_it_carries = pytest.mark.parametrize("name", CARRIED)


@pytest.mark.parametrize("region", ["eu-west-1", "us-gov-west-1", "ap-southeast-2"])
def test_it_asks_where_boto3_would(region):
    client = boto3.client("sesv2", **{**BOTO, "region_name": region})
    assert make_ses(region=region).base_url == client.meta.endpoint_url


def test_a_base_url_goes_before_the_region():
    assert make_ses("https://email.example.com/").base_url == "https://email.example.com"


@pytest.mark.parametrize(
    "setting",
    [
        *({"region": region} for region in ("", "eu-west", "eu-west-1.evil.example", "EU-WEST-1")),
        *({"access_key_id": key_id} for key_id in ("", "a b", "a/b", "ä")),
        {"secret_access_key": ""},
        {"session_token": "a b"},
    ],
)
def test_a_setting_that_cannot_be_is_an_error(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        make_ses(**setting)


@every_message_it_carries
def test_boto3_itself_would_send_the_same(name, stand_in):
    server = stand_in(answer(*CONTRACT.accepted))
    make_ses(server.url, session_token=None).send(CARRIED[name], 5)
    boto_client(endpoint_url=server.url).send_email(**_parameters(CARRIED[name]))
    ours, theirs = server.requests
    assert (ours.method, ours.path, ours.body) == (theirs.method, theirs.path, theirs.body)
    signed = [
        re.search(r"SignedHeaders=[^,]+", r.headers["authorization"])[0] for r in (ours, theirs)
    ]
    assert signed[0] == signed[1]


def breaches(value: Any, shape: Any, path: str = "") -> list[str]:
    """Where `value` breaks the lengths and patterns of AWS's description; boto3 reads none."""
    if shape.type_name == "structure":
        return [b for k, v in value.items() for b in breaches(v, shape.members[k], f"{path}.{k}")]
    if shape.type_name == "list":
        return [b for item in value for b in breaches(item, shape.member, path)]
    if shape.type_name != "string":
        return []
    rules = shape.metadata
    tag = path.startswith(".EmailTags.")  # this one is in its words only
    pattern = r"[A-Za-z0-9_-]{1,256}" if tag else rules.get("pattern", ".*")
    fits = rules.get("min", 0) <= len(value) <= rules.get("max", 10**6)
    allowed = rules.get("enum", [value])
    return [] if fits and value in allowed and re.fullmatch(pattern, value, re.DOTALL) else [path]


@every_message_it_carries
def test_the_official_description_accepts_the_request(name):
    shape = boto_client().meta.service_model.operation_model("SendEmail").input_shape
    assert breaches(_parameters(CARRIED[name]), shape) == []


def test_the_official_description_would_notice_a_header_that_is_too_long():
    shape = boto_client().meta.service_model.operation_model("SendEmail").input_shape
    simple = {"Headers": [{"Name": "X-A", "Value": "x" * 996}, {"Name": "X:", "Value": "1"}]}
    assert breaches({"Content": {"Simple": simple}}, shape) == [
        ".Content.Simple.Headers.Value",
        ".Content.Simple.Headers.Name",
    ]


def test_a_boto3_without_a_field_refuses_the_message(stand_in, monkeypatch):
    server = stand_in(answer(*CONTRACT.accepted))
    service = make_ses(server.url)
    monkeypatch.delitem(service._send_email.input_shape.members, "ConfigurationOverrides")
    error = outcome_of(service, make_message(track_opens=True))
    assert (type(error), server.requests) == (MessageRejected, [])
    assert outcome_of(service) == CONTRACT.message_id


@pytest.mark.parametrize("token", [TOKEN, None])
def test_the_signature_is_of_what_goes_over_the_wire(token, stand_in):
    server = stand_in(answer(*CONTRACT.accepted))
    outcome_of(make_ses(server.url, session_token=token))
    (got,) = server.requests
    stated = re.fullmatch(
        r"AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/\d{8}/eu-west-1/ses/aws4_request, "
        r"SignedHeaders=([a-z0-9;-]+), Signature=([0-9a-f]{64})",
        got.headers["authorization"],
    )
    names, signature = stated.groups()
    assert ("x-amz-security-token" in names) is bool(token)
    headers = {name: got.headers[name] for name in names.split(";")}
    request = AWSRequest(got.method, server.url + got.path, headers, got.body)
    request.context["timestamp"] = got.headers["x-amz-date"]
    signer = SigV4Auth(Credentials("AKIDEXAMPLE", PROVIDER_KEY), "ses", "eu-west-1")
    to_sign = signer.string_to_sign(request, signer.canonical_request(request))
    assert signer.signature(to_sign, request) == signature


def test_a_message_whose_answer_did_not_come_is_not_posted_again(stand_in):
    server = stand_in(reset)
    assert type(outcome_of(make_ses(server.url))) is OutcomeUnknown
    assert len(server.requests) == 1


def test_keys_of_the_environment_are_not_used(stand_in, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    server = stand_in(answer(*CONTRACT.accepted))
    assert outcome_of(make_ses(server.url)) == CONTRACT.message_id
    assert "Credential=AKIDEXAMPLE/" in server.requests[0].headers["authorization"]


def test_no_log_holds_a_secret(stand_in, caplog):
    caplog.set_level(logging.DEBUG)
    outcome_of(make_ses(stand_in(answer(*CONTRACT.accepted)).url))
    assert TOKEN not in caplog.text
    assert PROVIDER_KEY not in caplog.text


def test_the_token_is_taken_out_of_what_it_says(stand_in):
    server = stand_in(answer_json(403, {"message": f"should be {TOKEN}"}))
    assert outcome_of(make_ses(server.url)).reason == "HTTP 403: should be [removed]"


def test_the_code_stands_before_its_words(stand_in):
    headers = {"x-amzn-ErrorType": "BadRequestException:http://internal.example/doc/"}
    server = stand_in(answer_json(400, {"Message": "No."}, headers))
    assert outcome_of(make_ses(server.url)).reason == "HTTP 400: BadRequestException: No."


def test_addresses_that_are_not_verified_are_not_repeated(stand_in):
    server = stand_in(answer(*refusal(400, "MessageRejected", UNVERIFIED)))
    assert outcome_of(make_ses(server.url)).reason == (
        "HTTP 400: MessageRejected: Email address is not verified. "
        "The following identities failed the check in region EU-WEST-1."
    )


@pytest.mark.parametrize("body", [b"", b"{}", b'{"Mess'])
def test_an_acceptance_of_aws_without_its_body_is_sent(body, stand_in):
    server = stand_in(answer(200, {"X-Amzn-RequestId": "a-b"}, body))
    assert outcome_of(make_ses(server.url)) is None


CANNOT_CARRY = {
    "50 recipients": {"to_cc": [f"a{n}@example.net" for n in range(50)]},
    "ASCII": {"to_recipients": "jörg@example.org"},
    "15 headers": {"headers": {f"X-{n}": "1" for n in range(16)}},
    "996 characters": {"headers": {"X-A": "x" * 994}},
    "1 tag": {"tags": ["one", "two"]},
    "letters, digits": {"tags": "spring sale"},
    "256 letters": {"metadata": {"key": "x" * 257}},
    'called "tag"': {"tags": "one", "metadata": {"tag": "two"}},
    "255 bytes": {"attachments": [{**PDF, "filename": "変" * 100 + ".pdf"}]},
    "78 characters": {
        "attachments": [
            {"filename": "a.qqq", "content": "", "content_type": "a" * 16 + "/" + "b" * 62}
        ]
    },
    "never at a time": {"send_at": NEXT_YEAR},
}
CAN_CARRY = {
    "recipients": {"to_cc": [f"a{n}@example.net" for n in range(49)]},
    "headers": {"headers": {f"X-{n}": "1" for n in range(15)}},
    "a header": {"headers": {"X-A": "x" * 993}},
    "tags": {"tags": "one", "metadata": {"key": "x" * 256, "tags": "two"}},
    "metadata called tag": {"metadata": {"tag": "two"}},
}


@pytest.mark.parametrize("why", CANNOT_CARRY)
def test_what_it_cannot_carry_is_not_for_it(why):
    with pytest.raises(CannotCarry, match=re.escape(why)):
        make_ses().check(make_message(**CANNOT_CARRY[why]))


@pytest.mark.parametrize("what", CAN_CARRY)
def test_what_it_just_carries_is_for_it(what):
    make_ses().check(make_message(**CAN_CARRY[what]))


def test_it_takes_40_mb():
    def of(megabytes):
        fields = {**PLAIN, "raw_text_body": "x" * megabytes * MEGABYTE}
        return EmailMessage.parse(fields, "example.com", max_bytes=50 * MEGABYTE)

    make_ses().check(of(40))
    with pytest.raises(CannotCarry, match="40 MB"):
        make_ses().check(of(41))


def test_a_long_name_beyond_ascii_is_encoded_words_of_75_characters():
    name = " ".join(["Übergrößenträger"] * 12)
    encoded, _, address = _parameters(make_message(from_name=name))["FromEmailAddress"].rpartition(
        " "
    )
    words = encoded.split(" ")
    assert address == "<me@example.com>"
    assert max(map(len, words)) <= 75
    assert all(re.fullmatch(r"=\?utf-8\?[bq]\?[^ ?]+\?=", word) for word in words)
    assert str(make_header(decode_header(encoded))) == name


def test_accounts_share_the_description_of_the_api():
    one, other = make_ses(), make_ses(region="us-east-1")
    assert one._send_email.service_model is other._send_email.service_model
    assert one.base_url != other.base_url


def test_without_boto3_the_start_says_what_to_install(tmp_path):
    (tmp_path / "botocore").mkdir()
    (tmp_path / "botocore" / "__init__.py").write_text("raise ModuleNotFoundError('botocore')")
    code = "from email_services.providers import find_provider; find_provider('amazon_ses')"
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"],
        capture_output=True,
        text=True,
        check=False,
    )
    last = run.stderr.splitlines()[-1]
    assert last.startswith("email_services.exceptions.MissingPackage: ")
    assert last.endswith("pip install boto3")


MOTO = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def moto():
    """The URL of a server that behaves like AWS, written by others; it ends with its stdin."""
    server = subprocess.Popen(
        [sys.executable, "-c", MOTO],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        port = int(server.stdout.readline())
        yield f"http://127.0.0.1:{port}"
    finally:
        server.communicate()


@pytest.fixture
def aws(moto):
    """The same, with nothing in it."""
    requests.post(f"{moto}/moto-api/reset", timeout=5)
    return moto


def verify(aws):
    boto_client(endpoint_url=aws).create_email_identity(EmailIdentity="example.com")


def sent_by(aws):
    return requests.get(f"{aws}/moto-api/data.json", timeout=5).json()["ses"]


def test_a_sender_that_is_not_verified_is_the_accounts_fault(aws):
    assert type(outcome_of(make_ses(aws))) is AccountRefused


def test_ses_accepts_a_message_of_a_verified_domain(aws):
    verify(aws)
    message = make_message(
        html_body="<p>It works.</p>", to_cc="c@example.org", to_bcc="d@example.org"
    )
    message_id = outcome_of(make_ses(aws), message)
    (sent,) = sent_by(aws)["Message"]
    assert (sent["id"], sent["source"]) == (message_id, "me@example.com")
    assert sent["destinations"] == {
        "ToAddresses": ["ada@example.org"],
        "CcAddresses": ["c@example.org"],
        "BccAddresses": ["d@example.org"],
    }


@every_message_it_carries
def test_ses_accepts_everything_that_is_for_it(name, aws):
    verify(aws)
    assert isinstance(outcome_of(make_ses(aws), CARRIED[name]), str)


def test_ses_takes_50_recipients_and_no_more(aws):
    verify(aws)
    service = make_ses(aws)
    fifty = [f"a{n}@example.org" for n in range(50)]
    assert isinstance(outcome_of(service, make_message(to_recipients=fifty)), str)
    error = outcome_of(service, make_message(to_recipients=fifty, to_bcc="b@example.org"))
    assert type(error) is MessageRejected
    assert "Too many recipients" in error.reason
