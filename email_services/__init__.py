"""Email, nothing of web pages: messages, providers, and the pool that fails over."""

from typing import Final

VERSION: Final = "0.2.0"
