"""config.json: read, checked as a whole, and turned into pools."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import replace
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, TypeVar
from urllib.parse import unquote, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from email_services.abstract import AbstractEmailService, Seconds
from email_services.addresses import Mailbox, canonical_domain
from email_services.api_keys import (
    DOMAIN_ROLES,
    ROOT_ROLES,
    ApiKey,
    Keyring,
    KeySettings,
    OneKey,
)
from email_services.config_secrets import plain_secrets
from email_services.config_source import (
    TOO_DEEP,
    Path,
    Problems,
    parsed,
    printable,
    read_source,
    resolved,
)
from email_services.copies import Copies, Seal
from email_services.exceptions import (
    ConfigError,
    Names,
    StoreUnavailable,
    UnknownDomain,
    UnusableProvider,
    describe,
)
from email_services.guard import Guard, PatternField
from email_services.kafka import KafkaAddress, is_installed
from email_services.ledger import Queue
from email_services.message import (
    DAY_SECONDS,
    MAX_DAYS_AHEAD,
    MAX_MESSAGE_BYTES,
    MEGABYTE,
    OnUnknown,
)
from email_services.pool import DEFAULT_DEADLINE_SECONDS, MANY, PooledEmailService
from email_services.providers import find_provider, provider_names
from email_services.store import DEFAULT_URL, Store, Uploaded
from email_services.streams import BUILT_IN, NAME, Stream
from email_services.transport import is_loopback

_Model = TypeVar("_Model", bound=BaseModel)
logger = logging.getLogger(__name__)

PLACEHOLDER: Final = "CHANGE-ME"
"""How the keys in config_example.json begin."""

_SERVICE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_RESERVED_NAMES: Final = ("send", "messages")
"""They stand where a service's name would in a URL."""

OF_THE_FILE: Final = ("state_url", "queue_url", "config_upload")
"""What an upload does not say: where the state and the queue are, which each node may reach in its
own way, and whether uploads count at all."""

KEPT_ELSEWHERE: Final = (
    'a secret is not uploaded: name where it is kept, as "env:NAME" or "file:/run/secrets/name"'
)

USUAL_PROCESSES: Final = 2
"""Where $WEB_CONCURRENCY does not say (gunicorn.conf.py)."""

MAX_PORT: Final = 65535
_LABEL: Final = r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
_HOST: Final = rf"{_LABEL}(?:\.{_LABEL})*|\[[0-9a-f:.]+\]"
_ORIGIN = re.compile(rf"(https?)://(?:{_HOST})(?::([1-9][0-9]{{0,4}}))?")


def _origin(value: str) -> str:
    """An origin as a browser writes it, since the two are compared as they are."""
    match = _ORIGIN.fullmatch(value)
    scheme, port = match.groups() if match else ("", None)
    usual = {"http": "80", "https": "443"}.get(scheme)
    if not match or port == usual or int(port or 1) > MAX_PORT:
        raise ValueError(
            "It should be an origin as a browser writes it: https://app.example.com or "
            "http://localhost:3000, in lower case, with no path and no usual port"
        )
    return value


def _queue_address(value: object) -> KafkaAddress:
    address = KafkaAddress.of(str(value))
    if not is_installed():
        raise ValueError("It needs the package confluent-kafka (pip install confluent-kafka)")
    return address


class StreamSettings(BaseModel):
    """One stream of a domain as config.json describes it; see Stream."""

    model_config = ConfigDict(extra="forbid")

    share: Annotated[float, Field(gt=0, le=1)] | None = None
    services: Annotated[list[str], Field(min_length=1)] | None = None
    expires_in: Annotated[int | float, Field(gt=0, le=MAX_DAYS_AHEAD * DAY_SECONDS)] | None = None
    on_unknown: OnUnknown | None = None
    at_cap: Literal["next", "wait"] | None = None


StreamName = Annotated[str, Field(pattern=NAME)]


class DomainSettings(BaseModel):
    """One email domain as config.json describes it."""

    model_config = ConfigDict(extra="forbid")

    email_domain: Annotated[str, AfterValidator(canonical_domain)]
    pool_api_key: Any
    deadline_seconds: Seconds = DEFAULT_DEADLINE_SECONDS
    on_unknown: OnUnknown = "failover"
    send: Literal["now", "queued"] = "now"
    when_all_fail: Literal["error", "queue"] = "error"
    streams: dict[StreamName, StreamSettings] = {}
    deliver_only_to: Annotated[list[PatternField], Field(min_length=1)] | None = None
    redirect_to: Mailbox | None = None
    keep_content_days: Annotated[int | float, Field(ge=0, le=36500)] = 0
    enabled_services: dict[str, dict[str, Any]] = Field(min_length=1)


class ConfigFile(BaseModel):
    """config.json as a whole."""

    model_config = ConfigDict(extra="forbid")

    root_api_key: Any
    production: bool = False
    state_url: str | None = None
    queue_url: Annotated[KafkaAddress, BeforeValidator(_queue_address)] | None = None
    config_upload: bool = False
    message_retention_days: Annotated[int | float, Field(gt=0, le=36500)] = 30
    max_message_megabytes: Annotated[int | float, Field(ge=0.1, le=100)] = (
        MAX_MESSAGE_BYTES / MEGABYTE
    )
    cors_origins: list[Annotated[str, AfterValidator(_origin)]] = []
    email_services: list[DomainSettings] = Field(min_length=1)


class EmailDomain:
    """One email domain: its keys, its services, and how it fails over."""

    def __init__(
        self,
        settings: DomainSettings,
        keys: list[ApiKey],
        services: list[AbstractEmailService],
        streams: Mapping[str, Stream],
    ) -> None:
        self.email_domain = settings.email_domain
        self.keys = keys
        self.services = services
        self.queues_all = settings.send == "queued"
        """Whether messages wait in the queue whose senders do not say."""
        self.streams = streams
        self.guard = Guard(settings.deliver_only_to, settings.redirect_to)
        self.keep_content_days = settings.keep_content_days
        self._settings = settings

    def pool(
        self,
        store: Store,
        threads: int = MANY,
        queue: Queue | None = None,
        copies: Copies | None = None,
    ) -> PooledEmailService:
        """The domain's services as a pool that keeps its state in `store`.

        queue: what takes messages that are to wait, if not the store. copies: what keeps them.
        threads: how many requests of this domain may be in progress in this process.
        """
        return PooledEmailService(
            self.email_domain,
            self.services,
            store,
            deadline_seconds=self._settings.deadline_seconds,
            on_unknown=self._settings.on_unknown,
            streams=self.streams,
            queues_unsent=self._settings.when_all_fail == "queue",
            guard=self.guard,
            queue=queue,
            copies=copies,
            threads=threads,
            processes=_processes(),
        )


def _processes() -> int:
    """How many of the service there are on this machine, as gunicorn is told."""
    given = os.environ.get("WEB_CONCURRENCY", "")
    return max(1, int(given)) if given.isdecimal() else USUAL_PROCESSES


class Config:
    """A configuration that was found good.

    production: listings need a key, and keys are never shown. state_url: where the state is.
    queue: where what is accepted waits, if not there.
    message_retention_days: how long the message log is kept. max_message_bytes: what a message may
    hold, its files as they are. cors_origins: of the sites whose pages may ask. seal: what encrypts
    the messages that are kept. given: what it was made of, as data. written: the same as somebody
    wrote it. uploaded: where it was uploaded. takes_uploads: whether another may be.
    """

    def __init__(
        self,
        file: ConfigFile,
        root_keys: list[ApiKey],
        domains: list[EmailDomain],
        given: Any = None,
        *,
        written: Any = None,
        uploaded: Uploaded | None = None,
    ) -> None:
        self.written = written
        self.uploaded = uploaded
        self.takes_uploads = file.config_upload
        self.of_the_file = {name: given[name] for name in OF_THE_FILE if name in (given or {})}
        self.production = file.production
        self.state_url = os.environ.get("DATABASE_URL") or file.state_url or DEFAULT_URL
        self.message_retention_days = file.message_retention_days
        self.max_message_bytes = int(file.max_message_megabytes * MEGABYTE)
        self.cors_origins = file.cors_origins
        self.queue = file.queue_url
        self.domains = {domain.email_domain: domain for domain in domains}
        self.seal = _seal()
        self.root_keys = root_keys
        self.keyring = Keyring([*root_keys, *(key for domain in domains for key in domain.keys)])
        shared = {**(given or {}), **dict.fromkeys(OF_THE_FILE)}
        self._digest = hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).digest()

    def fingerprint(self, salt: str) -> str:
        """The same for the same configuration, its keys included, on all that share `salt`.

        salt: a secret, without which nobody can try whether a key is the one in it.
        """
        return hmac.new(salt.encode(), self._digest, hashlib.sha256).hexdigest()[:16]

    def store(self) -> Store:
        """The state that it names."""
        days = self.message_retention_days
        return Store(self.state_url, days * DAY_SECONDS, self._content_seconds)

    def copies(self, store: Store) -> Copies:
        """What keeps the messages of its domains, as long as each of them says."""
        return Copies(store, self._content_seconds, self.seal)

    @property
    def _content_seconds(self) -> dict[str, float]:
        return {name: d.keep_content_days * DAY_SECONDS for name, d in self.domains.items()}

    @property
    def streams(self) -> set[str]:
        """The names of those of all domains."""
        return {stream for domain in self.domains.values() for stream in domain.streams}

    @property
    def version(self) -> int | None:
        """Its number, where it was uploaded."""
        return self.uploaded.version if self.uploaded else None

    def go_on_from(self, before: Config, store: Store, copies: Copies) -> None:
        """Go on with what a configuration before has open: the state, copies, and connections.

        Those of services of which nothing has changed.
        """
        store.keep(self.message_retention_days * DAY_SECONDS, self._content_seconds)
        copies.keep_for(self._content_seconds)
        for name, domain in self.domains.items():
            if name in before.domains:
                known = {service.name: service for service in before.domains[name].services}
                domain.services = [
                    known[service.name] if service.is_the_same(known.get(service.name)) else service
                    for service in domain.services
                ]

    def domain(self, name: str) -> EmailDomain:
        """The domain `name`, however it is spelled. Raises UnknownDomain."""
        try:
            return self.domains[canonical_domain(name)]
        except (KeyError, ValueError):
            raise UnknownDomain(name) from None


def load_config(source: str | None = None) -> Config:
    """Read the configuration from `source`, a path or URL, else $EMAIL_CONFIG, else config.json.

    Where that has uploads count, it is the newest of those, if there is one. Raises ConfigError
    with one line that names the file and, for each problem, its JSON path.
    """
    source = source or os.environ.get("EMAIL_CONFIG") or "config.json"
    config = checked_config(read_source(source), printable(source))
    if not config.takes_uploads:
        return config
    # Not without it, even if the database is away: it may be why nobody gets mail who should not.
    with closing(Store(config.state_url)) as store:
        try:
            return newest_config(config, store) or config
        except StoreUnavailable as error:
            raise ConfigError(f"What was uploaded cannot be read. {error}") from None


def newest_config(config: Config, store: Store) -> Config | None:
    """What was uploaded since `config`, if anything was; the same where it is the newest.

    Raises ConfigError where it is not usable here, and StoreUnavailable.
    """
    version = store.newest_version() if config.takes_uploads else None
    if version is None or version == config.version:
        return None
    uploaded = store.configuration(version)
    return checked_upload(uploaded, config.of_the_file) if uploaded else None


def checked_upload(uploaded: Uploaded, of_the_file: Mapping[str, Any]) -> Config:
    """What was uploaded, beside what the file of this node says. Raises ConfigError."""
    name = f"version {uploaded.version} of the configuration"
    return checked_config(uploaded.content, name, uploaded, of_the_file)


def checked_config(
    text: str,
    name: str,
    uploaded: Uploaded | None = None,
    of_the_file: Mapping[str, Any] = MappingProxyType({}),
) -> Config:
    """What `text` configures, which came from what is called `name`. Raises ConfigError.

    uploaded: what it is of, if it was uploaded; of_the_file: settings beside it then.
    """
    problems = Problems()
    written = parsed(text, name)
    try:
        given = resolved(written, problems)
    except RecursionError:
        raise ConfigError(f"{name}: {TOO_DEEP}") from None
    if uploaded and isinstance(given, dict):
        _refuse_in_uploads(written, problems)
        given = {**given, **of_the_file}
    root_keys = []
    if isinstance(given, dict) and "root_api_key" in given:
        root_keys = _keys(given["root_api_key"], ("root_api_key",), None, problems)
    file = _validated(ConfigFile, given, (), problems)
    domains = _domains(file, problems) if file else []
    if file is None or problems:
        raise ConfigError(f"{name}: {problems}", problems.sentences)
    config = Config(file, root_keys, domains, given, written=written, uploaded=uploaded)
    _refuse_state_without_a_file(config.state_url)
    _refuse_or_warn(config, name)
    if not config.seal.is_on:
        kept = [name for name, domain in config.domains.items() if domain.keep_content_days]
        if kept:
            logger.warning(
                "%s: copies of messages of %s are kept unencrypted ($CONTENT_KEY encrypts them)",
                name,
                ", ".join(kept),
            )
    for domain in config.domains.values():
        if domain.guard.is_on:  # which nobody should find out from who got no mail
            logger.warning("%s: messages of %s %s", name, domain.email_domain, domain.guard)
    return config


def _refuse_in_uploads(written: Mapping[str, Any], problems: Problems) -> None:
    for setting in OF_THE_FILE:
        if setting in written:
            problems.add((setting,), "it is not uploaded: the file of each machine says it")
    for path in plain_secrets(written):
        problems.add(path, KEPT_ELSEWHERE)


def _validated(model: type[_Model], given: Any, path: Path, problems: Problems) -> _Model | None:
    try:
        return model.model_validate(given)
    except ValidationError as error:
        for item in error.errors():
            place = item["loc"]
            if place[-1:] == ("int",) and item["type"].startswith("int_"):
                continue  # half of int | float, whose other half says the same
            if place[-1:] == ("float",) and item["type"].startswith("float_"):
                place = place[:-1]
            problems.add((*path, *place), describe(item, Names(model.model_fields)))
    except OverflowError:
        problems.add(path, "a number in it is too large")
    return None


def _domains(file: ConfigFile, problems: Problems) -> list[EmailDomain]:
    seen: set[str] = set()
    domains = []
    for index, settings in enumerate(file.email_services):
        path = ("email_services", index)
        if settings.email_domain in seen:
            problems.add((*path, "email_domain"), f"'{settings.email_domain}' is given twice")
        seen.add(settings.email_domain)
        if settings.keep_content_days > file.message_retention_days:
            problem = f"more than message_retention_days, which is {file.message_retention_days:g}"
            problems.add((*path, "keep_content_days"), problem)
        keys = _keys(
            settings.pool_api_key, (*path, "pool_api_key"), settings.email_domain, problems
        )
        services = _services(settings, path, problems)
        streams = _streams(settings, {service.name for service in services}, path, problems)
        domains.append(EmailDomain(settings, keys, services, streams))
    return domains


def _keys(given: Any, path: Path, email_domain: str | None, problems: Problems) -> list[ApiKey]:
    """The key, or the keys, that stand at `path`."""
    if not isinstance(given, list):
        one = _validated(OneKey, given, path, problems)
        role = (DOMAIN_ROLES if email_domain else ROOT_ROLES)[0]
        value = one.root.get_secret_value() if one else None
        return [ApiKey(str(path[-1]), role, email_domain, value=value, is_named=False)]
    if not given:
        problems.add(path, "It should have at least one key")
    keys: list[ApiKey] = []
    for index, settings in enumerate(given):
        found = _validated(KeySettings, settings, (*path, index), problems)
        if found is None:
            continue
        if found.name in {key.name for key in keys}:
            problems.add((*path, index, "name"), f"'{found.name}' is given twice")
        try:
            keys.append(ApiKey.of(found, email_domain))
        except ValueError as error:
            problems.add((*path, index, "role"), str(error))
    return keys


def _streams(
    domain: DomainSettings, services: set[str], path: Path, problems: Problems
) -> dict[str, Stream]:
    """Those that every domain has, and its own."""
    streams = dict(BUILT_IN)
    for name, given in domain.streams.items():
        said = {field: value for field, value in given if value is not None}
        said["services"] = tuple(service.lower() for service in said.get("services", ()))
        for index, service in enumerate(said["services"]):
            if service not in services:
                problem = "the domain has no usable service of this name"
                problems.add((*path, "streams", name, "services", index), problem)
        streams[name] = replace(streams.get(name, Stream(name)), **said)
    return streams


def _services(
    domain: DomainSettings, domain_path: Path, problems: Problems
) -> list[AbstractEmailService]:
    services: dict[str, AbstractEmailService] = {}
    for given_name, given in domain.enabled_services.items():
        path = (*domain_path, "enabled_services", given_name)
        name = given_name.lower()
        if not _SERVICE_NAME.fullmatch(name) or name in _RESERVED_NAMES:
            problems.add(path, "a service's name has letters, digits, - and _, and is not reserved")
        if name in services:
            problems.add(path, f"'{name}' is given twice")
        try:
            provider = find_provider(str(given.get("service", name)).lower())
        except KeyError:
            known = ", ".join(provider_names())
            problems.add(path, f'no such provider; give "service" one of: {known}')
            continue
        except UnusableProvider as error:
            problems.add(path, str(error))
            continue
        fields = {key: value for key, value in given.items() if key != "service"}
        settings = _validated(provider.Settings, fields, path, problems)
        if settings is not None:
            services[name] = provider(name, domain.email_domain, settings)
    return list(services.values())


def _seal() -> Seal:
    try:
        return Seal(os.environ.get("CONTENT_KEY", "").replace(",", " ").split())
    except ValueError:
        raise ConfigError(
            "$CONTENT_KEY is not usable: it should be a key of 32 bytes in URL-safe base64, or "
            "several with commas between them, the newest first."
        ) from None


def _refuse_state_without_a_file(state_url: str) -> None:
    """SQLite in memory: each connection would have a state of its own, and lose it."""
    try:
        url = make_url(state_url)
    except (ArgumentError, ValueError):
        return  # which the store says
    name = unquote(url.database or "")
    in_memory = not name or ":memory:" in name or url.query.get("mode") == "memory"
    if "\0" in name or (url.get_backend_name() == "sqlite" and in_memory):
        raise ConfigError(
            "The state's URL ($DATABASE_URL or state_url) is not usable: SQLite needs a file."
        )


def _refuse_or_warn(config: Config, name: str) -> None:
    """What is convenient on a laptop and dangerous in production."""
    weaknesses = [*_weak_keys(config), *_clear_text(config), *_fetched_in_the_clear(name)]
    if weaknesses and config.production:
        raise ConfigError(f"{name}: not fit for production: {'; '.join(weaknesses)}")
    for weakness in weaknesses:
        logger.warning("%s: %s", name, weakness)


def _weak_keys(config: Config) -> Iterable[str]:
    seen: dict[str, str] = {}
    for key in config.keyring.keys:
        if key.secret.startswith(PLACEHOLDER):
            yield f"the {key} is a placeholder that everybody knows"
        if key.secret in seen:
            yield f"the {key} is the same as the {seen[key.secret]}"
        seen[key.secret] = str(key)


def _clear_text(config: Config) -> Iterable[str]:
    for domain in config.domains.values():
        for service in domain.services:
            if what := service.unencrypted():
                yield f"{service.name} of {domain.email_domain} would send {what} unencrypted"


def _fetched_in_the_clear(name: str) -> Iterable[str]:
    if name.startswith("http://") and not is_loopback(urlsplit(name).hostname or ""):
        yield "it was fetched unencrypted"
