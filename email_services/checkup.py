"""Try everything that a send needs, and send nothing: `python -m email_services check`.

Exit status, for cron: 0 all is well as far as it can be told; 1 mail goes out, and something wants
to be mended by daylight: a service that does not work, a single point of failure, a provider that
neither SPF nor DKIM names; 2 mail of some domain does not go out, or the configuration or the
database cannot be used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from dns.resolver import NoResolverConfiguration, Resolver

from email_services.abstract import AbstractEmailService, Standing
from email_services.config import Config, EmailDomain
from email_services.exceptions import (
    ConfigError,
    OutcomeUnknown,
    ProviderError,
    RateLimited,
    StoreUnavailable,
)
from email_services.names import has_dkim_key, included_by_spf
from email_services.store.trial import state_of

FINE: Final = 0
WARNING: Final = 1
BROKEN: Final = 2

AT_ONCE: Final = 16
DNS_SECONDS: Final = 5.0
"""For each question."""

_SAYS_NOTHING: Final = (RateLimited, OutcomeUnknown)
"""After which nothing is known of the account."""


@dataclass(frozen=True)
class Finding:
    """What was found out about one service. fault: why it cannot send, or ""."""

    service: AbstractEmailService
    standing: Standing
    fault: str = ""

    @property
    def result(self) -> str:
        """One word."""
        if self.fault:
            return "broken"
        return "ok" if self.standing.account and self.standing.domain else "unknown"

    @property
    def words(self) -> str:
        """What is known of the account and of the domain."""
        if self.fault:
            return self.fault
        account = "accepted" if self.standing.account else "unknown"
        domain = "accepted" if self.standing.domain else "unknown"
        return f"Account {account}, domain {domain}. {self.standing.note}".strip()


def check(load: Callable[[], Config], resolver: Resolver | None = None) -> int:
    """Print what was found, without any secret, and return the exit status.

    load: reads the configuration. resolver: whom to ask of DNS, by default the system's.
    """
    try:
        config = load()
    except ConfigError as error:
        _print("configuration", "broken", str(error))
        return BROKEN
    _print("configuration", "ok", f"Email domains: {', '.join(config.domains)}.")
    status = _check_database(config.state_url)
    resolver = resolver or _resolver()
    services = [service for domain in config.domains.values() for service in domain.services]
    with ThreadPoolExecutor(AT_ONCE) as threads:
        findings = dict(zip(services, threads.map(_look_at, services), strict=True))
    for domain in config.domains.values():
        found = [findings[service] for service in domain.services]
        status = max(status, _report(domain, found, resolver))
    return status


def _check_database(url: str) -> int:
    try:
        _print("database", "ok", state_of(url))
    except (StoreUnavailable, ConfigError) as error:
        _print("database", "broken", str(error))
        return BROKEN
    return FINE


def _look_at(service: AbstractEmailService) -> Finding:
    try:
        standing = service.look_at_account(service.settings.timeout_seconds)
    except _SAYS_NOTHING as error:
        return Finding(service, Standing(note=error.reason))
    except ProviderError as error:
        return Finding(service, Standing(), f"{error.code}: {error.reason}")
    if standing.domain is False:
        note = standing.note or "The provider has not verified the domain."
        return Finding(service, standing, f"domain_refused: {note}")
    return Finding(service, standing)


def _report(domain: EmailDomain, findings: list[Finding], resolver: Resolver | None) -> int:
    print(f"\n{domain.email_domain}")  # noqa: T201 - what the command is for
    warnings: list[str] = []
    for finding in findings:
        _print(f"  {finding.service.name}", finding.result, finding.words)
        warnings += _check_names(finding, resolver)
    usable = [finding.service for finding in findings if not finding.fault]
    if not usable:
        _print("", "broken", "No service can send.")
        return BROKEN
    if len(usable) == 1:
        warnings.append(f"single point of failure: only {usable[0].name} can send")
    elif len({service.depends_on for service in usable}) == 1:
        names = ", ".join(service.name for service in usable)
        warnings.append(f"single point of failure: {names} all depend on {usable[0].depends_on}")
    for warning in warnings:
        _print("", "warning", f"{warning}.")
    return WARNING if warnings or len(usable) < len(findings) else FINE


def _check_names(finding: Finding, resolver: Resolver | None) -> Iterator[str]:
    """Print whether the domain's DNS names the provider; a warning where nothing there does."""
    service = finding.service
    selectors = finding.standing.dkim or service.dkim_selectors
    if not service.spf_names and not selectors:
        return
    spf = _is_in_spf(service, resolver)
    dkim = _has_key(service.email_domain, selectors, resolver)
    _print("", "", f"SPF {_TOLD[spf]}, DKIM {_TOLD[dkim]}.")
    if spf is False and not dkim:
        yield f"neither SPF nor DKIM of {service.email_domain} is known to name {service.name}"


_TOLD: Final = {True: "names it", False: "does not name it", None: "unknown"}


def _is_in_spf(service: AbstractEmailService, resolver: Resolver | None) -> bool | None:
    included = included_by_spf(service.email_domain, resolver) if resolver else None
    if included is None or not service.spf_names:
        return None
    return not included.isdisjoint(service.spf_names)


def _has_key(domain: str, selectors: tuple[str, ...], resolver: Resolver | None) -> bool | None:
    if not resolver or not selectors:
        return None
    told = [has_dkim_key(domain, selector, resolver) for selector in selectors]
    return True if True in told else None if None in told else False


def _resolver() -> Resolver | None:
    try:
        resolver = Resolver()
    except NoResolverConfiguration:
        return None
    resolver.lifetime = DNS_SECONDS
    return resolver


def _print(what: str, result: str, words: str) -> None:
    """One line of what a terminal cannot take for orders: a provider's words are in it."""
    told = " ".join(words.split()).encode("unicode_escape").decode("ascii")
    print(f"{what:<24} {result:<8} {told}".rstrip())  # noqa: T201 - what the command is for
