"""HTTP and pages, nothing of email: one answer for programs (JSON) and for people (HTML)."""

from browsable_api import compat as compat  # first: flask_api does not import without it
from browsable_api.app import BrowsableAPI
from browsable_api.conventions import kept_by_clients
from browsable_api.errors import APIError
from browsable_api.operations import Access, Asked, Form, KeyField, Operation, Room
from browsable_api.request import request
from browsable_api.structure import Structure

__all__ = [
    "APIError",
    "Access",
    "Asked",
    "BrowsableAPI",
    "Form",
    "KeyField",
    "Operation",
    "Room",
    "Structure",
    "kept_by_clients",
    "request",
]
