"""What is wrong with what was sent is said so that it can be mended."""

from __future__ import annotations

import pytest
from conftest import POOL
from messages import PLAIN

from email_services.attachments import OTHER_FILE_NAMES, Attachment, InlineImage
from endpoints.log import MessageFilter
from endpoints.rooms import Fields
from endpoints.services import FailureWanted

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
