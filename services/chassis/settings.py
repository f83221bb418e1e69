"""Settings: read once from the environment, under the names that the deployment guide gives them, into frozen objects.

Every setting NAME may instead be given as NAME_FILE, the path of a file that holds the value. Whatever is wrong, missing or unknown is listed
at once, each with the way to mend it. Secrets are never printed: their type hides them.
"""

import difflib
import math
import os
import socket
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NoReturn, TypeVar, get_args, get_origin
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

import msgspec
from msgspec import Meta
from msgspec.structs import FieldInfo, fields

from services.chassis.sealing import derive, digest

S = TypeVar("S", bound="ChassisSettings")

# Names, places, log levels and sizes are an instance's own; of a service's key and certificate each may have a newer one for a while.
MAY_DIFFER = frozenset(
    {
        *("APP_NAME", "APP_VERSION", "INSTANCE_ID", "LOG_LEVEL", "LOG_FORMAT", "REFLECTION", "DRAIN_TIMEOUT", "SECURITY_SALT", "SIGN_TOGETHER"),
        *(
            "GRPC_ADDRESS",
            "INTERNAL_GRPC_ADDRESS",
            "METRICS_ADDRESS",
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            "ALLOW_PLAINTEXT",
            "TLS_CERT",
            "TLS_KEY",
            "TLS_CLIENT_CA",
            "TLS_CA",
        ),
        *("DATABASE_POOL_SIZE", "DATABASE_MAX_OVERFLOW", "DATABASE_STATEMENT_CACHE_SIZE", "REDIS_POOL_SIZE", "SERVICE_KEY"),
        *("CALLER_MEMORY", "POLICY_MEMORY"),
        *("SMTP_HOST", "SMTP_PORT", "SMTP_USERNAME", "SMTP_PASSWORD", "SMTP_FROM", "SMTP_TLS", "MAIL_DIR"),
        *("BOOTSTRAP_ADMIN_EMAIL", "BOOTSTRAP_ADMIN_PASSWORD"),
    }
)

# A misspelt name is recognised by these beginnings; other programs' variables are none of our business.
FAMILIES = (
    "APP_",
    "DATABASE_",
    "REDIS_",
    "JWT_",
    "SECURITY_",
    "CORS_",
    "AUTH_RATE_",
    "RATE_LIMIT_",
    "SMTP_",
    "BCRYPT_",
    "CALLER_",
    "PASSWORD_",
    "TOKEN_",
    "SERVICE_KEY",
    "METRICS_",
)
FOREIGN = frozenset({"APP_HOME", "DATABASE_READ_URL", "REDIS_VERSION", "REDIS_HOME"})  # names that base images are known to set
WELL_KNOWN = frozenset({"pass", "password", "postgres", "secret", "changeme", "change-me", "watchword", "user", "admin"})
WEAK = frozenset({"changeme", "change-me", "secret", "password", "test", "your-same-salt-on-all-instances", "placeholder", "replace-me"})


class SettingsError(Exception):
    """The environment is not usable; `problems` say why, one line each."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(["the settings are not usable:", *(f"  - {problem}" for problem in problems)]))


class Secret:
    """Text that nothing shows by itself: not `repr`, no log, no encoder."""

    __slots__ = ("_text",)

    def __init__(self, text: str = "") -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text."""
        return self._text

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return "Secret(...)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not pickled")


def _address(value: str) -> str:
    host, _, port = value.rpartition(":")
    if not host or not _is_number(port) or not 0 <= int(port) <= 65535:
        raise ValueError("must be HOST:PORT, such as 127.0.0.1:50051")
    return value


def _rate(value: str) -> str:
    count, _, seconds = value.partition("/")
    if not (_is_number(count) and _is_number(seconds) and int(count) > 0 and int(seconds) > 0):
        raise ValueError("must be COUNT/SECONDS, such as 60/60 for sixty a minute")
    return value


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _base_url(value: str) -> str:
    parts = _parts(value)
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None or parts.query or parts.fragment:
        raise ValueError("must be a URL such as https://auth.example.com")
    return value.rstrip("/")


def _parts(url: str) -> SplitResult | None:
    """Return the parts of a URL; None if it is none: what Python says of it then would show it."""
    try:
        return urlsplit(url)
    except ValueError:
        return None


def _endpoint(value: str) -> str:
    if not value.startswith(("http://", "https://")):
        raise ValueError("must be a URL such as http://collector:4317")
    return value


def _store_url(value: str, *, schemes: tuple[str, ...]) -> str:
    if not value.startswith(tuple(f"{scheme}://" for scheme in schemes)):
        raise ValueError(f"must be a URL that begins with {schemes[0]}://")
    if _parts(value) is None:
        raise ValueError("must be a URL; write signs of a password as %XX, such as %5B for [")
    return value


# What `reads` checks goes beyond what a type and its bounds can say. It gets the text, never an empty one, and returns the value.
Address = Annotated[str, Meta(extra={"reads": _address})]
Rate = Annotated[str, Meta(extra={"reads": _rate})]
BaseUrl = Annotated[str, Meta(extra={"reads": _base_url})]
Endpoint = Annotated[str, Meta(extra={"reads": _endpoint})]
PostgresUrl = Annotated[Secret, Meta(extra={"reads": partial(_store_url, schemes=("postgresql", "postgres"))})]
RedisUrl = Annotated[Secret, Meta(extra={"reads": partial(_store_url, schemes=("redis", "rediss", "redis+sentinel", "redis+cluster"))})]


class ChassisSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What every service reads."""

    # Which secrets production refuses when they are short or well known.
    strong_secrets: ClassVar[tuple[str, ...]] = ("SECURITY_SALT",)

    APP_ENV: Literal["development", "staging", "production"] = "development"
    APP_NAME: str = "Auth Server"
    APP_VERSION: str = "1.0.0"
    DATABASE_URL: PostgresUrl
    DATABASE_POOL_SIZE: Annotated[int, Meta(ge=1, le=100)] = 5
    DATABASE_MAX_OVERFLOW: Annotated[int, Meta(ge=0, le=200)] = 5
    DATABASE_STATEMENT_CACHE_SIZE: Annotated[int, Meta(ge=0)] = 100
    REDIS_URL: RedisUrl
    REDIS_POOL_SIZE: Annotated[int, Meta(ge=1, le=1000)] = 20
    SECURITY_SALT: Secret
    AUTH_RATE_LIMIT_ENABLED: bool = True
    RATE_LIMIT_READ: Rate = "1200/60"
    RATE_LIMIT_WRITE: Rate = "300/60"
    RATE_LIMIT_CREDENTIAL: Rate = "60/60"
    RATE_LIMIT_CHECK: Rate = "60000/60"
    CALLER_MEMORY: Annotated[int, Meta(ge=0, le=1_000_000)] = 10_000  # callers that identity or rbac remembers as proved, each instance; 0 for none
    GRPC_ADDRESS: Address = "127.0.0.1:50051"
    METRICS_ADDRESS: Address = ""
    INTERNAL_GRPC_ADDRESS: Address = "127.0.0.1:9090"
    INSTANCE_ID: Annotated[str, Meta(max_length=100)] = msgspec.field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}")
    SERVICE_KEY: Secret
    SERVICE_PUBLIC_KEYS: str
    TLS_CERT: str = ""
    TLS_KEY: Secret = Secret()
    TLS_CLIENT_CA: str = ""
    TLS_CA: str = ""
    ALLOW_PLAINTEXT: bool = False
    PUBLIC_BASE_URL: BaseUrl = "http://127.0.0.1:8080"
    TOKEN_ISSUER: str = ""
    TOKEN_AUDIENCE: str = "watchword"  # noqa: S105
    REFLECTION: bool = True
    DRAIN_TIMEOUT: Annotated[float, Meta(ge=0, le=300)] = 20.0
    LOG_LEVEL: Literal["debug", "info", "warning", "error"] = "info"
    LOG_FORMAT: Literal["json", "console"] = "json"
    OTEL_EXPORTER_OTLP_ENDPOINT: Endpoint = ""

    def fingerprint(self) -> str:
        """Return a keyed digest of what all instances of a context must share: equal exactly where they do, and worth nothing to a guesser."""
        shared = {name: getattr(self, name) for name in sorted(self.__struct_fields__) if name not in MAY_DIFFER}
        plain = [f"{name}={value.reveal() if isinstance(value, Secret) else value}" for name, value in shared.items()]
        key = derive(self.SECURITY_SALT.reveal(), "settings fingerprint")
        return digest(key, *(text.encode() for text in plain)).hex()[:8]

    @property
    def issuer(self) -> str:
        """The `iss` of the suite's tokens."""
        return self.TOKEN_ISSUER or self.PUBLIC_BASE_URL

    def problems(self) -> Iterator[str]:
        """Yield what only the settings together show."""
        if bool(self.TLS_CERT) != bool(self.TLS_KEY):
            yield "TLS_CERT and TLS_KEY go together: set both or neither"
        if self.APP_ENV != "production":
            return
        for name, whom in (("DATABASE_URL", "the database user"), ("REDIS_URL", "Redis")):
            password = _password_of(getattr(self, name).reveal())
            if not password or password.lower() in WELL_KNOWN:
                fault = "a well-known password" if password else "no password"
                yield f"{name} holds {fault}, and APP_ENV is production: give {whom} a random one"
        for name in self.strong_secrets:
            value: Secret = getattr(self, name)
            if value and _is_weak(value.reveal()):
                yield f"{name} is weak, and APP_ENV is production: use at least 32 random characters, such as from: openssl rand -base64 48"
        host = self.GRPC_ADDRESS.rpartition(":")[0]
        if host not in ("127.0.0.1", "localhost", "[::1]") and not self.TLS_CERT and not self.ALLOW_PLAINTEXT:
            yield "GRPC_ADDRESS is reachable from outside without TLS: set TLS_CERT and TLS_KEY, or ALLOW_PLAINTEXT=true behind a mesh that encrypts"


def _password_of(url: str) -> str:
    """Return the password in a URL of Postgres or Redis, where either of them looks for it."""
    parts = urlsplit(url)
    return unquote(parts.password or "") or next(iter(parse_qs(parts.query).get("password", ())), "")


def _is_weak(secret: str) -> bool:
    folded = secret.lower()
    return len(secret) < 32 or any(word in folded for word in WEAK) or len(set(secret)) < 10


def _all_classes() -> list[type[ChassisSettings]]:
    from services.identity.settings import IdentitySettings  # noqa: PLC0415  (they import this module)
    from services.rbac.settings import RbacSettings  # noqa: PLC0415
    from services.token.settings import TokenSettings  # noqa: PLC0415

    return [ChassisSettings, IdentitySettings, RbacSettings, TokenSettings]


def known_names() -> frozenset[str]:
    """Return every setting of every service; shared environments may hold them all. CORS_ORIGINS is Envoy's."""
    return frozenset(name for cls in _all_classes() for name in cls.__struct_fields__) | {"CORS_ORIGINS"}


def load(cls: type[S], environment: Mapping[str, str] | None = None) -> S:
    """Read `cls` from the environment. Raises SettingsError with every problem there is."""
    environment = os.environ if environment is None else environment
    broken: list[str] = []
    values: dict[str, Any] = {}
    for field in fields(cls):
        name = field.name
        try:
            text = _value(environment, name)
        except ValueError as error:
            broken.append(f"{name}_FILE: {error}")
            continue
        try:
            if text is not None:
                values[name] = _read(field, text)
            elif field.required:
                broken.append(f"{name} is missing: set {name} or {name}_FILE")
        except ValueError as error:
            broken.append(f"{name} {error}")
    settings = None if broken else cls(**values)
    problems = [*_unknown(environment), *broken, *(settings.problems() if settings else ())]
    if settings is None or problems:
        raise SettingsError(problems)
    return settings


def _read(field: FieldInfo, text: str) -> Any:
    """Return the value that a text means. Raises ValueError, which says what is wanted and never what was given."""
    kind, meta = _kind_of(field)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("is not UTF-8 text") from None
    if meta.extra is not None:
        text = meta.extra["reads"](text)
    if kind is Secret:
        return Secret(text)
    try:
        value = msgspec.convert(text if kind is str else text.strip(), field.type, strict=False)
    except msgspec.ValidationError:
        raise ValueError(_wanted(kind, meta)) from None
    if value == math.inf:
        raise ValueError("must be a finite number")
    return value


def _kind_of(field: FieldInfo) -> tuple[Any, Meta]:
    if get_origin(field.type) is not Annotated:
        return field.type, Meta()
    kind, meta = get_args(field.type)
    return kind, meta


def _wanted(kind: Any, meta: Meta) -> str:
    if get_origin(kind) is Literal:
        *others, last = map(repr, get_args(kind))
        return f"must be {', '.join(others)} or {last}"
    if kind is str:
        return f"must have at most {meta.max_length} characters" + (f" and match {meta.pattern}" if meta.pattern else "")
    if kind is bool:
        return "must be true or false"
    number = "a whole number" if kind is int else "a number"
    bounds = f" from {meta.ge} to {meta.le}" if meta.le is not None else f" of at least {meta.ge}"
    return f"must be {number}{bounds}"


def read_value(name: str, environment: Mapping[str, str] | None = None) -> str:
    """Read one required setting, for commands that need no more. Raises SettingsError."""
    try:
        value = _value(os.environ if environment is None else environment, name)
    except ValueError as error:
        raise SettingsError([f"{name}_FILE: {error}"]) from None
    if value is None:
        raise SettingsError([f"{name} is missing: set {name} or {name}_FILE"])
    return value


def _value(environment: Mapping[str, str], name: str) -> str | None:
    plain, path = environment.get(name), environment.get(f"{name}_FILE")
    if plain and path:
        raise ValueError(f"{name} is set as well; keep one of them")
    if not path:
        return plain or None
    try:
        return Path(path).read_text(encoding="utf-8").strip() or None
    except UnicodeDecodeError:
        raise ValueError("the file is not UTF-8 text") from None
    except OSError as error:
        raise ValueError(f"cannot read the file: {error.strerror}") from None


def _unknown(environment: Mapping[str, str]) -> Iterator[str]:
    known = known_names()
    for name in sorted(environment):
        base = name.removesuffix("_FILE")
        if base in known or base in FOREIGN or not name.startswith(FAMILIES):
            continue
        close = difflib.get_close_matches(base, known, n=1, cutoff=0.8)
        yield f"{name} is not a setting" + (f"; did you mean {close[0]}?" if close else "; remove it")
