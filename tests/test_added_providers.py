"""Providers that other packages add."""

from __future__ import annotations

import sys

import pytest

from email_services.discovery import is_reserved, reserved_headers
from email_services.exceptions import UnusableProvider
from email_services.providers import find_provider, provider_names
from email_services.providers.maildir import Maildir

CODE = """
from email_services.abstract import AbstractEmailService
class Good(AbstractEmailService):
    provider = "good"
    reserved_headers = ("x-good-",)
class Unnamed(AbstractEmailService):
    pass
NUMBER = 5
class Other:
    provider = "other"
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a package whose entry points are these lines."""

    def install(*lines):
        (tmp_path / "added_package.py").write_text(CODE)
        metadata = tmp_path / "added-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: added\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text("\n".join(["[email_services]", *lines]))
        monkeypatch.syspath_prepend(tmp_path)

    reserved_headers.cache_clear()
    yield install
    reserved_headers.cache_clear()
    sys.modules.pop("added_package", None)


def test_a_package_adds_a_provider_whatever_the_case_of_its_name(install):
    install("good = added_package:Good", "")
    assert find_provider("good").__name__ == "Good"
    assert "good" in provider_names()


def test_no_package_takes_the_name_of_a_provider_that_is_here(install):
    install("maildir = added_package:Good")
    assert find_provider("maildir") is Maildir
    assert provider_names().count("maildir") == 1


def test_the_headers_that_an_added_provider_declares_are_reserved(install):
    assert not is_reserved("X-Good-Tag")
    reserved_headers.cache_clear()
    install("good = added_package:Good", "gone = nowhere:Gone", "number = added_package:NUMBER")
    assert is_reserved("X-Good-Tag")
    assert is_reserved("X-Mailgun-Tag")


UNUSABLE = {
    "a module that is not there": ("bad = nowhere:Good", "nowhere:Good cannot be loaded"),
    "a name that is not there": ("bad = added_package:Missing", "cannot be loaded"),
    "a class of another kind": ("other = added_package:Other", "is no AbstractEmailService"),
    "something that is no class": ("bad = added_package:NUMBER", "is no AbstractEmailService"),
    "a class without a name": ("unnamed = added_package:Unnamed", "should have provider = "),
    "a class with another name": ("bad = added_package:Good", "should have provider = 'bad'"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_provider_that_cannot_be_used_says_why(name, install):
    line, why = UNUSABLE[name]
    install(line)
    with pytest.raises(UnusableProvider, match=why):
        find_provider(line.partition(" ")[0])


def test_a_name_that_nobody_adds_is_unknown():
    with pytest.raises(KeyError):
        find_provider("nobody")
