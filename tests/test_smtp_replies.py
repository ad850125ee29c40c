"""Whose fault a reply is: real servers' words, at each stage, whatever addresses they repeat."""

from __future__ import annotations

import pytest
from smtp_server import say
from test_smtp import make_message, outcome_of, service_at, smtp_server  # noqa: F401 - a fixture

from email_services.addresses import Address
from email_services.exceptions import (
    AccountRefused,
    LoginRefused,
    MessageRejected,
    RateLimited,
    ServiceUnavailable,
)
from email_services.smtp_replies import Stage, meaning_of, names_in

MAIL, RCPT, DATA, END = Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.END
CONNECT, AUTH = Stage.CONNECT, Stage.AUTH
MESSAGE, ANY = MAIL | RCPT | DATA | END, ~Stage(0)

# What each says ("{}" is where it repeats an address), and where it may.
RECIPIENTS = {
    "Postfix": [
        (RCPT, "550 5.1.1 <{}>: Recipient address rejected: User unknown in relay recipient table"),
        (RCPT, "550 5.1.1 <{}>: Recipient address rejected: User unknown in local recipient table"),
        (RCPT, "550 <{}>: Recipient address rejected: User unknown in relay recipient table"),
        (RCPT, "450 4.2.0 <{}>: Recipient address rejected: Greylisted, see http://postgrey.sch/"),
        (RCPT, "450 4.1.2 <{}>: Recipient address rejected: Domain not found"),
        (RCPT, ("450 4.1.1 <{}>: Recipient address rejected: unverified address: host mx.example"
               ".org[192.0.2.1] said: 554 5.7.1 Relay access denied, client host blocked")),
        (RCPT, "450 4.7.1 <{}>: Recipient address rejected: Greylisting in action, try later"),
        (RCPT, "452 4.2.2 <{}>: Recipient address rejected: mailbox over quota"),
        (RCPT, "554 5.7.1 <{}>: Recipient address rejected: Access denied"),
        (RCPT | MAIL, ("550 5.1.0 <{}>: Sender address rejected: User unknown in local recipient"
                      " table")),
        (RCPT, "452 4.5.3 Error: too many recipients"),
        (MAIL | END, "552 5.3.4 Message size exceeds fixed limit"),
        (END, "550 5.7.1 Message content rejected"),
        (END, "554 5.7.1 Service unavailable; message contains a virus for <{}>"),
    ],
    "Exim, qmail, sendmail": [
        (RCPT, "550 Unrouteable address {}"),
        (RCPT, "550 Unknown user {}"),
        (RCPT, "451 Temporary local problem, greylisted {}"),
        (RCPT, "452 {}: mailbox full, quota exceeded"),
        (RCPT, "552 {}: quota exceeded"),
        (RCPT, "553 5.3.0 <{}>... User unknown"),
        (RCPT, "550 sorry, no mailbox here by that name: {} (#5.1.1)"),
        (RCPT, "550 #5.1.0 Address rejected {}"),
        (END, "451 4.7.1 Greylisting in action for {}, please come back later"),
    ],
    "Exchange": [
        (RCPT, "550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient {} not found by SMTP address"),
        (RCPT, "550 5.4.1 Recipient address rejected: Access denied. AS(201806281) {}"),
        (RCPT | END, "550 5.7.1 RESOLVER.RST.AuthRequired; authentication required for {}"),
        (RCPT | END, "550 5.7.133 RESOLVER.RST.SenderNotAuthenticatedForGroup; {}"),
        (RCPT | END, "552 5.2.2 STOREDRV.Deliver.Exception:QuotaExceededException; {}"),
        (RCPT, "550 5.7.1 You are not allowed to send mail to {}"),
        (MAIL, "501 5.1.7 Invalid address {}"),
    ],
    "Gmail": [
        (RCPT, "550-5.1.1 The email account that you tried to reach does not exist: {}"),
        (RCPT, "452-4.2.2 The email account {} that you tried to reach is over quota"),
        (RCPT, ("450-4.2.1 The user {} is receiving mail at a rate that prevents additional"
               " messages from being delivered")),
        (RCPT, "550 5.2.1 The email account {} that you tried to reach is disabled"),
        (RCPT | END, "452 4.5.3 Your message has too many recipients"),
        (END, "552-5.7.0 This message was blocked because its content presents a potential issue"),
        (END, "554 5.6.0 Mail message is malformed. Not accepted."),
    ],
    "Amazon SES": [
        (END, "554 Transaction failed: Missing final '@domain' {}"),
        (END, "554 Message rejected: Unsupported attachment for {}"),
        (MAIL, "501 Invalid MAIL FROM address provided: {}"),
        (END, "552 Message is too long."),
    ],
    "SendGrid": [
        (RCPT, "550 Invalid recipient {}"),
        (RCPT, "550 5.1.1 Recipient address rejected: {}"),
        (END, "550 Requested action not taken: mailbox unavailable {}"),
    ],
}  # fmt: skip

OTHERS = {
    AccountRefused: [
        (RCPT, "554 5.7.1 <{}>: Relay access denied"),
        (RCPT, "454 4.7.1 <{}>: Relay access denied"),
        (RCPT, "550 5.7.1 <{}>... Relaying denied. Proper authentication required."),
        (RCPT, "550 5.7.54 SMTP; Unable to relay recipient in non-accepted domain {}"),
        (RCPT, "550 5.7.1 Unable to relay for {}"),
        (RCPT, "550 relay not permitted {}"),
        (RCPT, "550 5.7.64 TenantAttribution; Relay Access Denied [AM1.prod.outlook.com]"),
        (RCPT, "553 sorry, that domain isn't in my list of allowed rcpthosts (#5.7.1)"),
        (MAIL | RCPT, "553 5.7.1 <{}>: Sender address rejected: not owned by user me"),
        (MAIL | RCPT, "553 5.7.1 <{}>: Sender address rejected: not logged in"),
        (MAIL | RCPT, "550 5.1.8 Access denied, bad outbound sender AS(42003)"),
        (RCPT, "554 5.7.1 Service unavailable; Client host [192.0.2.1] blocked using zen"),
        (MAIL | RCPT, "530 5.7.0 Authentication required"),
        (MAIL, "530 5.7.57 SMTP; Client was not authenticated to send anonymous mail"),
        (MAIL | END, "550 5.7.60 SMTP; Client does not have permissions to send as this sender"),
        (END, "554 5.2.252 SendAsDenied; {} not allowed to send as {}"),
        (END, ("554 5.2.0 STOREDRV.Submission.Exception:SendAsDeniedException.MapiException"
              "SendAsDenied; Failed to process message due to a permanent exception")),
        (END, "550 5.7.708 Service unavailable. Access denied, traffic not accepted from this IP"),
        (ANY, "550 5.7.705 Access denied, tenant has exceeded threshold"),
        (MAIL | RCPT | END, "550 5.4.5 Daily user sending limit exceeded"),
        (MAIL | RCPT | END, "550-5.7.26 This mail is unauthenticated, which poses a risk"),
        (RCPT, "550 5.7.0 Mail relay denied [192.0.2.1]. Invalid credentials for relay"),
        (END, ("554 Access denied: User `arn:aws:iam::1:user/ses' is not authorized to perform "
              "`ses:SendRawEmail' on resource `arn:aws:ses:eu-west-1:1:identity/{}'")),
        (END, ("554 Message rejected: Sending paused for this account. For more information, please"
              " check the inbox of the email address associated with your AWS account.")),
        (END, "554 Message rejected: Sending suspended for this account."),
        (END, ("554 Message rejected: Email address is not verified. The following identities"
              " failed the check in region EU-WEST-1: {}")),
        (ANY, "454 Throttling failure: Daily message quota exceeded."),
        (AUTH, "451 Authentication failed: Maximum credits exceeded"),
        (MAIL, ("550 The from address does not match a verified Sender Identity. Mail cannot be"
               " sent until this error is resolved.")),
        (MAIL | END, "550 Unauthenticated senders not allowed"),
        (MAIL, "550 Your account has been suspended"),
        (RCPT | END, "550 Domain has exceeded the max emails per hour (500/500) allowed"),
        (CONNECT, "554 5.7.1 Client host rejected: banned"),
    ],
    LoginRefused: [
        (ANY, "535 5.7.8 Error: authentication failed: UGFzc3dvcmQ6"),
        (AUTH, "535-5.7.8 Username and Password not accepted"),
        (AUTH, "535 Authentication failed: The provided authorization grant is invalid"),
        (AUTH, "550 No such user here"),
    ],
    RateLimited: [
        (ANY, "454 Throttling failure: Maximum sending rate exceeded."),
        (MAIL | RCPT, "450 4.7.1 Error: too much mail from 192.0.2.1"),
        (RCPT, "450 4.7.1 Error: too many recipients from 192.0.2.1"),
        (ANY, "421 4.7.0 mail.example.net Error: too many connections from 192.0.2.1"),
        (ANY, "421 Too many concurrent SMTP connections"),
        (ANY, "421-4.7.0 Our system has detected an unusual rate of unsolicited mail"),
        (MAIL | END, "451 4.7.500 Server busy. Please try again later"),
        (RCPT, "450 4.2.1 Peak SMTP relay limit exceeded for customer."),
        (END, "432 4.3.2 STOREDRV.ClientSubmit; sender thread limit exceeded"),
    ],
    ServiceUnavailable: [
        (MAIL | RCPT | END, "452 4.3.1 Insufficient system storage"),
        (MAIL | RCPT | END, "451 4.3.0 <{}>: Temporary lookup failure"),
        (ANY, "421 4.3.2 Service not available"),
        (ANY, "421 4.4.2 mail.example.net Error: timeout exceeded"),
        (RCPT, "450 4.7.25 Client host rejected: cannot find your hostname, [192.0.2.1]"),
        (AUTH, "454 4.7.0 Temporary authentication failure"),
        (CONNECT, "554 No SMTP service here"),
        (MESSAGE, "503 5.5.1 Bad sequence of commands"),
    ],
}  # fmt: skip

REPLIES = [
    *((MessageRejected, *each) for replies in RECIPIENTS.values() for each in replies),
    *((means, *each) for means, replies in OTHERS.items() for each in replies),
]
HARMLESS = "ada@example.org"
HOSTILE = [
    "daily@example.org",
    "credits@example.org",
    "quota@example.org",
    "rate@relay.example",
    "sending.quota@throttling.example",
    "relay@denied.example",
    "SendAsDenied@example.org",
    "5.7.60@example.org",
    "#4.7.0@example.org",
    "relay-access-denied@sending-paused.example",
    "sending-rate@daily-message-quota.credits-exceeded.example",
]


def meaning(reply: str, stage: Stage, address: str):
    code, text = int(reply[:3]), reply[4:].replace("{}", address)
    return meaning_of(code, text, stage, names_in([Address(address)]))


@pytest.mark.parametrize(("means", "stages", "reply"), REPLIES)
def test_a_reply_is_the_fault_of_whom_it_is_about(means, stages, reply):
    assert {meaning(reply, stage, HARMLESS) for stage in stages} == {means}


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize(("means", "stages", "reply"), REPLIES)
def test_no_address_that_is_repeated_changes_that(means, stages, reply, hostile):
    code, text = int(reply[:3]), reply[4:].replace("{}", hostile)
    assert {meaning_of(code, text, stage) for stage in stages} == {means}
    if means is MessageRejected:
        assert {meaning(reply, stage, hostile) for stage in stages} == {means}


UNKNOWN = ["550 No such user: {}", "550 5.1.1 {}", "450 <{}> busy", "552 {0} of {1} is full"]


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize(
    "said", [*UNKNOWN, "554 User {0} unknown at mx.{1}", "550 {0}?", "550 {1}"]
)
def test_a_name_that_is_repeated_in_part_is_no_reason(said, hostile):
    local, _, domain = hostile.partition("@")
    reply = said.replace("{}", hostile).replace("{0}", local).replace("{1}", domain)
    assert meaning(reply, RCPT, hostile) is MessageRejected


@pytest.mark.parametrize(
    "said",
    ["550 5.1.1 <{}>: User unknown in relay recipient table", "452 4.2.2 <{}> full", "450 Grey"],
)
def test_a_recipient_who_is_refused_rests_nobody(said, smtp_server):  # noqa: F811 - a fixture
    server = smtp_server({"RCPT": say(said.replace("{}", "credits@relay.example"))})
    error = outcome_of(service_at(server), make_message(to_recipients="credits@relay.example"))
    assert type(error) is MessageRejected
    assert not error.blames_service


@pytest.mark.parametrize("code", range(400, 600))
@pytest.mark.parametrize("stage", Stage)
def test_every_refusal_means_something(stage, code):
    means = meaning_of(code, "", stage)
    assert stage in MESSAGE or means is not MessageRejected
