"""What is wrong with what was sent, or with config.json, is said in the house's own words."""

from __future__ import annotations

import math
from string import Formatter
from types import ModuleType

import pytest
from conftest import POOL
from messages import PLAIN
from pydantic import BaseModel, ValidationError

import app
from email_services import config
from email_services.attachments import OTHER_FILE_NAMES, Attachment, InlineImage
from email_services.exceptions import SENTENCES, Names, describe
from email_services.providers import find_provider, provider_names
from endpoints.log import MessageFilter
from endpoints.rooms import Fields
from endpoints.services import FailureWanted

OURS = ("email_services", "endpoints")
OWN_WAYS = {"extra_forbidden", "value_error"}
"""Errors whose sentences are made, or ours already."""

MANY = 2000
WRONG = [
    *(None, True, object()),
    *(0, -1, 1.5, 10**9, math.nan, math.inf),
    *("", "x", "\0", "1e400", "2026-11-24", "2026-13-24T12:00:00Z", "2026-11-24T12:00:00"),
    *(b"x", b"\xff"),
    *([], [None], [1], ["x"], [{}], ["a@b.example"] * MANY),
    *({}, {"a": 1}, {"a": {}}, {f"a{n}": "b" for n in range(MANY)}),
]


def models() -> list[type[BaseModel]]:
    """Every model that what comes from outside is held to."""
    modules: list[ModuleType] = [app, config]
    providers = [find_provider(name) for name in provider_names()]
    assert modules
    assert providers
    waiting, found = [BaseModel], []
    while waiting:
        for model in waiting.pop().__subclasses__():
            waiting.append(model)
            if model.__module__.partition(".")[0] in OURS:
                found.append(model)
    return found


def faults(model: type[BaseModel]) -> list:
    """What pydantic says of everything wrong that one can think of."""
    fields = [{name: value} for name in model.model_fields for value in WRONG]
    given = [[], "x", {}, {"no_such_field": 1}, *fields]
    return [fault for one in given for fault in faults_of(model, one)]


def faults_of(model: type[BaseModel], given: object) -> list:
    try:
        model.model_validate(given)
    except ValidationError as error:
        return error.errors()
    return []


def test_every_fault_of_every_model_has_words_of_ours_and_no_words_are_left_over():
    kinds = {item["type"] for model in models() for item in faults(model)}
    assert kinds - OWN_WAYS == set(SENTENCES)


def test_the_models_are_those_of_messages_requests_and_the_configuration():
    names = {model.__name__ for model in models()}
    assert names >= {"EmailMessage", "Attachment", "Batch", "MessageFilter", "FailureWanted"}
    assert names >= {"SignIn", "ConfigFile", "DomainSettings", "APIKeySettings", "SMTPSettings"}


@pytest.mark.parametrize("kind", SENTENCES)
def test_words_of_ours_are_a_sentence(kind):
    names = [name for _, name, *_ in Formatter().parse(SENTENCES[kind]) if name]
    item = {"type": kind, "loc": ("a",), "msg": "Input", "ctx": dict.fromkeys(names, 5)}
    sentence = describe(item, Names())
    assert sentence == "Required." or sentence.startswith("It should ")
    assert sentence.endswith(".")
    assert "valid" not in sentence
    assert "{" not in sentence


def test_a_fault_that_nobody_thought_of_is_still_a_sentence_of_ours():
    item = {"type": "uuid_parsing", "loc": ("a",), "msg": "Input should be a valid UUID"}
    assert describe(item, Names()) == "It is not what it should be."


FOREIGN_OF_FILES = {
    "name": "filename",
    "Name": "filename",
    "type": "content_type",
    "contentType": "content_type",
    "ContentType": "content_type",
    "data": "content",
    "Base64Content": "content",
    "RawContent": "content",
}


@pytest.mark.parametrize("field", ["attachments", "inline"])
@pytest.mark.parametrize("foreign", FOREIGN_OF_FILES)
def test_what_others_call_a_field_of_a_file_is_met_with_what_it_is_called_here(
    foreign, field, client
):
    file = {"filename": "a.txt", "content": "QQ==", foreign: "x"}
    body = {**PLAIN, field: [{**file}]}
    answer = client.post("/example.com/send", json=body, headers=POOL)
    meant = FOREIGN_OF_FILES[foreign]
    assert answer.json["problems"] == {
        f"{field}.0.{foreign}": f"Unknown field. Did you mean '{meant}'?"
    }


def test_only_an_image_is_asked_for_its_content_id(client):
    body = {**PLAIN, "attachments": [{"cid": "x"}], "inline": [{"cid": "x"}]}
    problems = client.post("/example.com/send", json=body, headers=POOL).json["problems"]
    assert problems["inline.0.cid"] == "Unknown field. Did you mean 'content_id'?"
    assert problems["attachments.0.cid"] == "Unknown field."


FOREIGN_IN_THE_LOG = {
    "to": "recipient",
    "to_recipients": "recipient",
    "status": "outcome",
    "event": "outcome",
    "provider": "service",
    "start": "since",
    "end": "until",
    "page": "cursor",
    "per_page": "limit",
}


@pytest.mark.parametrize("foreign", FOREIGN_IN_THE_LOG)
def test_what_others_call_a_filter_of_the_log_is_met_with_what_it_is_called_here(foreign, client):
    answer = client.get("/example.com/messages", query_string={foreign: "1"}, headers=POOL)
    meant = FOREIGN_IN_THE_LOG[foreign]
    assert answer.json["problems"] == {foreign: f"Unknown field. Did you mean '{meant}'?"}


@pytest.mark.parametrize(
    ("model", "others"),
    [
        (Attachment, {k: v for k, v in OTHER_FILE_NAMES.items() if v != "content_id"}),
        (InlineImage, OTHER_FILE_NAMES),
        *((model, model.other_names) for model in Fields.__subclasses__()),
    ],
)
def test_every_other_name_leads_to_a_field_and_is_none_itself(model, others):
    assert set(others.values()) <= set(model.model_fields)
    assert not set(others) & set(model.model_fields)
    assert {name.lower() for name in others} == set(others)


def test_models_of_requests_know_other_names():
    assert MessageFilter.other_names["to"] == "recipient"
    assert FailureWanted.other_names["type"] == "kind"


def test_a_filter_with_a_nul_is_told_so(client):
    answer = client.get("/example.com/messages?recipient=%00", headers=POOL)
    assert answer.json["problems"] == {"recipient": "It holds a NUL character."}
