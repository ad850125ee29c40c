"""Amazon SES, its API v2: checked, written and signed by AWS's SDK, sent by us.

Sources: AWS's own description of the API, which botocore (1.44, under boto3) holds;
docs.aws.amazon.com/ses (API v2, quotas, header fields, attachments, errors).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import replace
from email.header import Header
from functools import cache
from typing import Annotated, Any, Final

import requests
from pydantic import Field

from email_services.abstract import Acceptance, Key, Standing
from email_services.addresses import Address
from email_services.attachments import Attachment
from email_services.capabilities import Capabilities
from email_services.exceptions import (
    AccountRefused,
    MessageRejected,
    MissingPackage,
    RateLimited,
)
from email_services.http_service import (
    USER_AGENT,
    Complaint,
    HTTPEmailService,
    HTTPSettings,
    filled,
    id_from,
    not_the_providers,
)
from email_services.message import EmailMessage
from email_services.transport import Answer

try:
    from botocore.auth import SigV4Auth
    from botocore.awsrequest import AWSRequest, create_request_object, prepare_request_dict
    from botocore.credentials import Credentials
    from botocore.exceptions import ParamValidationError
    from botocore.loaders import Loader
    from botocore.model import ServiceModel
    from botocore.serialize import create_serializer
except ModuleNotFoundError:
    raise MissingPackage("boto3") from None

# At DEBUG it logs the session token, as one of the headers it signs.
logging.getLogger("botocore.auth").setLevel(logging.INFO)

TAG: Final = "tag"
"""What SES calls the message's own tag: to it, a tag is a name and a value."""

MAX_HEADER: Final = 996
MAX_FILENAME_BYTES: Final = 255
MAX_CONTENT_TYPE: Final = 78
MAX_ENCODED_WORD: Final = 75
"""Characters of one (RFC 2047); a long name is several."""

_TAG_VALUE = re.compile(r"[A-Za-z0-9_-]{1,256}")
_UNVERIFIED = re.compile(r"(failed the check in region [\w-]+): .*", re.DOTALL)


class AmazonSESSettings(HTTPSettings):
    """What config.json may say of an account at SES; keys of the environment are not used."""

    access_key_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]{1,128}$")] = Field(
        description="The id of the access key, of a user or role that may ses:SendEmail."
    )
    secret_access_key: Key = Field(description="The access key itself.")
    session_token: Key | None = Field(None, description="For a temporary access key, its token.")
    region: Annotated[str, Field(pattern=r"^[a-z]{2,3}(-[a-z]+)+-[0-9]+$")] = Field(
        description='The region whose SES sends, such as "eu-west-1"; each has its own quota.'
    )


class AmazonSES(HTTPEmailService):
    """SES's `POST /v2/email/outbound-emails` (SendEmail), content Simple.

    botocore's own HTTP is not used: it bounds each wait but not their sum, and by default it
    posts a message three times if no answer comes (seen with 1.44). Here each is posted once.

    Quirks, with their sources:

    - What is wrong is a code in X-Amzn-ErrorType and a text (AWS's description). A used-up day
      ("Daily message quota exceeded") and too fast a sender ("Maximum sending rate exceeded")
      have one code: the text tells them apart (developer guide, sending quotas). No Retry-After.
    - A sender that is not verified is MessageRejected, as bad content is; in the sandbox a
      recipient is too (developer guide, errors). The text goes on to list the addresses. So is
      every message of an account whose sending is paused (as public threads quote it).
    - A suppressed recipient is accepted, and bounces later (not confirmed).
    - Message-ID is always SES's own (developer guide, header fields): ours does not go along.
    - It has no SMTPUTF8: ASCII left of the @ (AWS's description). A name beyond ASCII is to be
      an encoded word (API reference of v1).
    - A tag is a name with a value, both of letters, digits, _ and - (AWS's description); whether
      a name may come twice is not confirmed. A tag of ours is called "tag"; metadata, by their key.
    - Tracking is set in ConfigurationOverrides, which is new: an older boto3 refuses it.
    - Text is 7-bit ASCII unless a Charset is given, and a file is 7-bit unless an encoding is
      (developer guide, attachments). Some extensions, .exe for one, are refused (same page); how
      SES encodes names of files beyond ASCII, and that a ContentType may have a charset, is not
      confirmed.
    - A message with bcc alone is fine (API reference of v1; for v2 not confirmed).
    - Bulk calls (SendBulkEmail) take templates only, so that each message has its own call.
    - An identity has VerifiedForSendingStatus and DkimAttributes.Tokens, which are the selectors
      (AWS's description of GetEmailIdentity). A domain above the email domain, or an address in it,
      may be the one that is verified.
    """

    provider = "amazon_ses"
    default_base_url = "https://email.{settings.region}.amazonaws.com"
    account_path = "/v2/email/identities/{domain}"
    spf_names = ("amazonses.com",)
    reserved_headers = ("x-ses-",)
    Settings = AmazonSESSettings
    capabilities = Capabilities(
        recipients=50, any_local_part=False, headers=15, tags=1, schedule_days=0, megabytes=40
    )
    codes = {
        "TooManyRequests": RateLimited,
        "Throttling": RateLimited,
        "LimitExceeded": AccountRefused,
        "AccountSuspended": AccountRefused,
        "SendingPaused": AccountRefused,
        "AccountSendingPaused": AccountRefused,
        "MailFromDomainNotVerified": AccountRefused,
        "AccessDenied": AccountRefused,
        "NotAuthorized": AccountRefused,
        "IncompleteSignature": AccountRefused,
        "RequestExpired": AccountRefused,
    }
    words = (
        ("TooManyRequests", "daily message quota", AccountRefused),
        ("Throttling", "daily message quota", AccountRefused),
        ("MessageRejected", "not verified|sending (paused|suspended) for this", AccountRefused),
    )
    settings: AmazonSESSettings

    def __init__(self, name: str, email_domain: str, settings: AmazonSESSettings) -> None:
        super().__init__(name, email_domain, settings)
        description = _description()
        self._send_email = description.operation_model("SendEmail")
        self._serializer = create_serializer(description.protocol)
        key = Credentials(
            settings.access_key_id,
            self.secrets["secret_access_key"],
            self.secrets.get("session_token"),
        )
        self._signer = SigV4Auth(key, description.signing_name, settings.region)

    def authentication(self) -> dict[str, str]:
        """None of the same for all: each request is signed."""
        return {}

    def lacking(self, message: EmailMessage) -> Iterable[str]:
        """See AbstractEmailService."""
        if any(len(name) + len(value) > MAX_HEADER for name, value in message.headers.items()):
            yield f"It carries headers of at most {MAX_HEADER} characters with their names."
        if not all(map(_TAG_VALUE.fullmatch, (*message.tags, *message.metadata.values()))):
            yield "It carries tags and metadata of 1 to 256 letters, digits, _ and - only."
        if message.tags and TAG in message.metadata:
            yield f'It carries no tag beside metadata called "{TAG}".'
        if any(len(file.filename.encode()) > MAX_FILENAME_BYTES for file in message.files):
            yield f"It carries files' names of at most {MAX_FILENAME_BYTES} bytes."
        if any(len(file.full_type) > MAX_CONTENT_TYPE for file in message.files):
            yield f"It carries media types of at most {MAX_CONTENT_TYPE} characters."

    def build_request(self, message: EmailMessage) -> requests.Request:
        """See HTTPEmailService; signed as of now, which is good for five minutes."""
        try:
            whole = self._serializer.serialize_to_request(_parameters(message), self._send_email)
        except ParamValidationError:
            raise MessageRejected("The boto3 installed here does not know a field of it.") from None
        prepare_request_dict(whole, endpoint_url=self.base_url, user_agent=USER_AGENT)
        signed = create_request_object(whole)
        self._signer.add_auth(signed)
        ready = signed.prepare()
        return requests.Request(ready.method, ready.url, headers=ready.headers, data=ready.body)

    def read_acceptance(self, answer: Answer, message: EmailMessage) -> Acceptance:  # noqa: ARG002
        """`{"MessageId": "..."}`; every answer of AWS's has X-Amzn-RequestId."""
        if "MessageId" in answer.json_object or "X-Amzn-RequestId" in answer.headers:
            return Acceptance(id_from(answer.json_object.get("MessageId")))
        raise not_the_providers(answer)

    def get(self, path: str) -> requests.Request:
        """Signed, as every request of it."""
        signed = AWSRequest("GET", self.base_url + path, headers={"User-Agent": USER_AGENT})
        self._signer.add_auth(signed)
        ready = signed.prepare()
        return requests.Request(ready.method, ready.url, headers=ready.headers)

    def read_standing(self, answer: Answer) -> Standing:
        """The identity of the domain's name, and the selectors of its DKIM keys."""
        codes = self.complaint(answer).codes
        if "NotFound" in codes:
            return Standing(account=True, note="There is no identity of this name in the region.")
        if "AccessDenied" in codes:
            return Standing(account=True, note="The key may not ses:GetEmailIdentity.")
        standing = super().read_standing(answer)
        verified = answer.json_object.get("VerifiedForSendingStatus")
        dkim = answer.json_object.get("DkimAttributes")
        tokens = dkim.get("Tokens") if isinstance(dkim, dict) else None
        return replace(
            standing,
            domain=verified if isinstance(verified, bool) else None,
            dkim=tuple(map(str, tokens)) if isinstance(tokens, list) else (),
        )

    def complaint(self, answer: Answer) -> Complaint:
        """X-Amzn-ErrorType, then `{"message": "..."}`, with an M at times, without addresses."""
        code = answer.headers.get("X-Amzn-ErrorType", "").partition(":")[0]
        said = answer.json_object
        # In the sandbox it goes on to list the recipients, which the caller knows.
        text = _UNVERIFIED.sub(r"\1.", str(said.get("message", said.get("Message", ""))))
        return Complaint(": ".join(filter(None, (code, text))), (code.removesuffix("Exception"),))


@cache
def _description() -> ServiceModel:
    """AWS's own of the API, read once: it takes 3 MB."""
    return ServiceModel(Loader().load_service_model("sesv2", "service-2"))


def _parameters(message: EmailMessage) -> dict[str, Any]:
    """What SendEmail takes; botocore refuses what its description of the API does not have."""
    recipients = {
        "ToAddresses": _mailboxes(message.to_recipients),
        "CcAddresses": _mailboxes(message.to_cc),
        "BccAddresses": _mailboxes(message.to_bcc),
    }
    content = {
        "Subject": _text(message.subject),
        "Body": filled({"Text": _text(message.raw_text_body), "Html": _text(message.html_body)}),
        "Headers": [{"Name": name, "Value": value} for name, value in message.headers.items()],
        "Attachments": [
            *(_file(file, "ATTACHMENT") for file in message.attachments),
            *({**_file(i, "INLINE"), "ContentId": i.content_id} for i in message.inline),
        ],
    }
    tags = [*((TAG, tag) for tag in message.tags), *message.event_data.items()]
    tracking = {
        "OpenTrackingEnabled": _TRACKING.get(message.track_opens),
        "ClickTrackingEnabled": _TRACKING.get(message.track_clicks),
    }
    return filled(
        {
            "FromEmailAddress": _mailbox(message.from_email),
            "Destination": filled(recipients),
            "ReplyToAddresses": _mailboxes(message.reply_to),
            "Content": {"Simple": filled(content)},
            "EmailTags": [{"Name": name, "Value": value} for name, value in tags],
            "ConfigurationOverrides": filled({"Tracking": filled(tracking)}),
        }
    )


_TRACKING: Final[dict[bool | None, str]] = {True: "ENABLED", False: "DISABLED"}


def _text(text: str) -> dict[str, str]:
    return {"Data": text, "Charset": "UTF-8"} if text else {}


def _mailboxes(addresses: list[Address]) -> list[str]:
    return [_mailbox(address) for address in addresses]


def _mailbox(address: Address) -> str:
    if address.name.isascii():
        return str(address)
    words = Header(address.name, "utf-8", maxlinelen=MAX_ENCODED_WORD).encode(linesep="")
    return f"{words} <{address.email}>"


def _file(file: Attachment, disposition: str) -> dict[str, Any]:
    return {
        "FileName": file.filename,
        "ContentType": file.full_type,
        "ContentDisposition": disposition,
        "ContentTransferEncoding": "BASE64",
        "RawContent": file.content,
    }
