"""Settings: every problem at once, in words that mend, and never a secret."""

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import asdict

from services.chassis.settings import ChassisSettings, SettingsError, known_names, load, read_value
from services.identity.settings import IdentitySettings
from services.token.settings import TokenSettings
from tests.conftest import ROOT

STRONG = "0Zr9v-Kx7pQ2mB5tW8yE3uN6aS1dF4gHj"
SEED = [
    "APP_ENV",
    "APP_NAME",
    "APP_VERSION",
    "DATABASE_URL",
    "DATABASE_POOL_SIZE",
    "DATABASE_MAX_OVERFLOW",
    "REDIS_URL",
    "REDIS_POOL_SIZE",
    "JWT_ALGORITHM",
    "JWT_PRIVATE_KEY",
    "JWT_PUBLIC_KEY",
    "JWT_KEY_ID",
    "SECURITY_SALT",
    "CORS_ORIGINS",
    "AUTH_RATE_LIMIT_ENABLED",
    "SMTP_HOST",
    "SMTP_PORT",
]
GOOD = {
    "DATABASE_URL": "postgresql://user:canary-database@db/authdb",
    "REDIS_URL": "redis://:canary-redis@cache:6379",
    "SECURITY_SALT": "canary-salt",
    "SERVICE_KEY": "canary-service-key",
    "SERVICE_PUBLIC_KEYS": "{}",
}
NAMES = {cls: set(cls.__struct_fields__) for cls in (ChassisSettings, IdentitySettings, TokenSettings)}
PRODUCTION = {**GOOD, "APP_ENV": "production", "SECURITY_SALT": STRONG}


def problems(environment: dict[str, str], cls: type[ChassisSettings] = ChassisSettings) -> list[str]:
    with pytest.raises(SettingsError) as failure:
        load(cls, environment)
    return failure.value.problems


def test_every_name_of_the_seed_is_known() -> None:
    assert set(SEED) <= known_names()


def test_the_defaults_are_the_seeds() -> None:
    settings = load(TokenSettings, GOOD)

    assert (settings.APP_ENV, settings.APP_NAME, settings.APP_VERSION) == ("development", "Auth Server", "1.0.0")
    assert (settings.DATABASE_POOL_SIZE, settings.DATABASE_MAX_OVERFLOW, settings.REDIS_POOL_SIZE) == (5, 5, 20)
    assert (settings.JWT_ALGORITHM, settings.AUTH_RATE_LIMIT_ENABLED) == ("RS256", True)
    assert settings.issuer == settings.PUBLIC_BASE_URL


@pytest.mark.parametrize("name", sorted(set(SEED) - {"CORS_ORIGINS"}))
def test_every_setting_may_come_from_a_file(tmp_path: Path, name: str) -> None:
    """Mounted secrets never stand in the environment, which children and crash reports inherit."""
    values = {**GOOD, "APP_ENV": "staging", "JWT_ALGORITHM": "ES256", "AUTH_RATE_LIMIT_ENABLED": "false", "JWT_PRIVATE_KEY": "pem", "MAIL_DIR": "/m"}
    values |= {other: "7" for other in SEED if other.endswith(("_SIZE", "_OVERFLOW", "_PORT"))}
    value = values.setdefault(name, "text")
    (tmp_path / "value").write_text(f"{value}\n", encoding="utf-8")
    cls = IdentitySettings if name in NAMES[IdentitySettings] - NAMES[ChassisSettings] else TokenSettings
    given = {other: text for other, text in values.items() if other in NAMES[cls] and other != name}

    from_file = load(cls, {**given, f"{name}_FILE": str(tmp_path / "value")})
    from_environment = load(cls, {**given, name: value})

    assert getattr(from_file, name) == getattr(from_environment, name)


def test_a_setting_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    """Which of them wins would be a guess."""
    (tmp_path / "salt").write_text("other", encoding="utf-8")

    (problem,) = problems({**GOOD, "SECURITY_SALT_FILE": str(tmp_path / "salt")})

    assert problem == "SECURITY_SALT_FILE: SECURITY_SALT is set as well; keep one of them"


def test_a_file_that_cannot_be_read_is_named_once(tmp_path: Path) -> None:
    """And not reported as missing a second time."""
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00canary")
    given = {name: value for name, value in GOOD.items() if name not in ("DATABASE_URL", "REDIS_URL", "SERVICE_KEY")}
    files = {"DATABASE_URL_FILE": str(tmp_path / "no"), "REDIS_URL_FILE": str(tmp_path / "binary"), "SERVICE_KEY_FILE": str(tmp_path)}

    found = problems({**given, **files})

    assert sorted(problem.split(":")[0] for problem in found) == ["DATABASE_URL_FILE", "REDIS_URL_FILE", "SERVICE_KEY_FILE"]
    assert all("canary" not in problem for problem in found)


def test_an_empty_file_is_no_value(tmp_path: Path) -> None:
    """As an empty variable is none: otherwise a secret that failed to mount would be an empty password."""
    (tmp_path / "empty").write_text("\n", encoding="utf-8")
    given = {name: value for name, value in GOOD.items() if name != "DATABASE_URL"}

    assert problems({**given, "DATABASE_URL_FILE": str(tmp_path / "empty")}) == problems({**given, "DATABASE_URL": ""})
    assert load(ChassisSettings, {**GOOD, "TLS_CLIENT_CA_FILE": str(tmp_path / "empty")}).TLS_CLIENT_CA == ""


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    """Whoever deploys mends them in one go, and not in six."""
    found = problems(
        {
            "DATABASE_URL_FILE": str(tmp_path / "no"),
            "REDIS_URL": "http://canary",
            "DATABASE_POOL_SIZE": "many",
            "LOG_LEVEL": "loud",
            "RATE_LIMIT_READ": "60 per minute",
            "GRPC_ADDRESS": "localhost",
            "DATABASE_POOL_SIZ": "3",
            "APP_COLOUR": "blue",
            "SERVICE_PUBLIC_KEYS": "{}",
            "SECURITY_SALT": "x",
        }
    )
    text = "\n".join(found)

    assert len(found) == 9
    assert "DATABASE_POOL_SIZ is not a setting; did you mean DATABASE_POOL_SIZE?" in found
    assert "APP_COLOUR is not a setting; remove it" in found
    assert "SERVICE_KEY is missing: set SERVICE_KEY or SERVICE_KEY_FILE" in found
    assert "RATE_LIMIT_READ must be COUNT/SECONDS, such as 60/60 for sixty a minute" in found
    assert "GRPC_ADDRESS must be HOST:PORT, such as 127.0.0.1:50051" in found
    assert "REDIS_URL must be a URL that begins with redis://" in found
    assert all(name in text for name in ("DATABASE_URL_FILE: ", "DATABASE_POOL_SIZE ", "LOG_LEVEL "))
    assert "canary" not in text


def test_other_programs_variables_are_none_of_our_business() -> None:
    assert load(ChassisSettings, {**GOOD, "PATH": "/bin", "HOME": "/", "PGHOST": "x", "REDIS_VERSION": "7", "KUBERNETES_PORT": "1"})


def test_the_settings_of_other_services_may_stand_in_a_shared_environment() -> None:
    assert load(ChassisSettings, {**GOOD, "JWT_KEY_ID": "a", "SMTP_PASSWORD_FILE": "/nowhere", "CORS_ORIGINS": "https://a.example"})


def test_secrets_are_never_shown() -> None:
    """Neither in repr, nor in str, nor dumped, nor in what is said when another setting is wrong."""
    given = {**GOOD, "JWT_PRIVATE_KEY": "canary-jwt", "KEY_ENCRYPTION_KEY": "canary-kek", "TLS_KEY": "canary-tls", "TLS_CERT": "cert"}
    settings = load(TokenSettings, given)
    words = "\n".join(problems({**given, "TLS_CERT": "", "LOG_LEVEL": "canary-level", "DATABASE_POOL_SIZE": "canary-size"}, TokenSettings))

    for text in (repr(settings), str(settings), f"{settings}", repr(asdict(settings)), words):
        assert "canary" not in text


@pytest.mark.parametrize(
    "change",
    [
        {"DATABASE_POOL_SIZE": "0"},
        {"DATABASE_URL": "mysql://db/x"},
        {"GRPC_ADDRESS": "127.0.0.1:70000"},
        {"RATE_LIMIT_CHECK": "0/60"},
        {"RATE_LIMIT_WRITE": "60/0"},
        {"DRAIN_TIMEOUT": "-1"},
        {"APP_ENV": "prod"},
        *(
            {"PUBLIC_BASE_URL": url}
            for url in ("auth.example.com", "ftp://a", "https://", "https:///x", "https://u:p@a", "https://a?b=c", "https://a#b")
        ),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused(change: dict[str, str]) -> None:
    (problem,) = problems({**GOOD, **change})
    assert problem.startswith(next(iter(change)))


@pytest.mark.parametrize(("given", "kept"), [("https://a.example/", "https://a.example"), ("https://a.example/auth", "https://a.example/auth")])
def test_a_base_url_loses_its_last_slash(given: str, kept: str) -> None:
    """It is compared to the letter as `iss`."""
    assert load(ChassisSettings, {**GOOD, "PUBLIC_BASE_URL": given}).issuer == kept


@pytest.mark.parametrize(
    "salt", ["short", "x" * 64, "your-same-salt-on-all-instances", "Please-CHANGEME-before-2026-or-else!", "abababababababababababababababababab"]
)
def test_production_refuses_a_weak_salt(salt: str) -> None:
    """It guards sealed records, page tokens and the password pepper."""
    assert load(ChassisSettings, {**GOOD, "SECURITY_SALT": salt})

    (problem,) = problems({**PRODUCTION, "SECURITY_SALT": salt})

    assert problem.startswith("SECURITY_SALT is weak")
    assert salt not in problem


def test_an_empty_salt_is_refused_everywhere() -> None:
    assert any(problem.startswith("SECURITY_SALT") for problem in problems({**GOOD, "SECURITY_SALT": ""}))


@pytest.mark.parametrize("address", ["0.0.0.0:50051", "[::]:50051", "10.0.0.7:50051", "token.internal:50051"])
def test_production_refuses_plaintext_beyond_loopback(address: str) -> None:
    """Bearer tokens travel on that wire."""
    (problem,) = problems({**PRODUCTION, "GRPC_ADDRESS": address})

    assert problem.startswith("GRPC_ADDRESS is reachable from outside without TLS")
    assert load(ChassisSettings, {**PRODUCTION, "GRPC_ADDRESS": address, "TLS_CERT": "c", "TLS_KEY": "k"})
    assert load(ChassisSettings, {**PRODUCTION, "GRPC_ADDRESS": address, "ALLOW_PLAINTEXT": "true"})


@pytest.mark.parametrize("address", ["127.0.0.1:50051", "localhost:50051", "[::1]:50051"])
def test_plaintext_on_loopback_needs_no_leave(address: str) -> None:
    assert load(ChassisSettings, {**PRODUCTION, "GRPC_ADDRESS": address})


@pytest.mark.parametrize("half", ["TLS_CERT", "TLS_KEY"])
def test_half_a_tls_pair_is_refused(half: str) -> None:
    """A server that silently serves plaintext because its key is missing would be worse than none."""
    assert problems({**GOOD, half: "pem"}) == ["TLS_CERT and TLS_KEY go together: set both or neither"]


def test_production_identity_wants_https_and_a_mail_server() -> None:
    """The base URL stands in mails with one-time links."""
    found = problems({**PRODUCTION, "MAIL_DIR": "/mail"}, IdentitySettings)

    assert [problem.split(" ")[0] for problem in found] == ["SMTP_HOST", "PUBLIC_BASE_URL"]
    assert load(IdentitySettings, {**PRODUCTION, "SMTP_HOST": "mail", "PUBLIC_BASE_URL": "https://auth.example"})


def test_commands_read_one_setting(tmp_path: Path) -> None:
    (tmp_path / "url").write_text(" postgresql://db/x \n", encoding="utf-8")

    assert read_value("DATABASE_URL", {"DATABASE_URL_FILE": str(tmp_path / "url")}) == "postgresql://db/x"
    for environment in ({}, {"DATABASE_URL": ""}, {"DATABASE_URL": "a", "DATABASE_URL_FILE": "b"}, {"DATABASE_URL_FILE": "/nowhere"}):
        with pytest.raises(SettingsError):
            read_value("DATABASE_URL", environment)


def test_settings_do_not_change() -> None:
    settings, name = load(ChassisSettings, GOOD), "APP_ENV"
    with pytest.raises(AttributeError, match="immutable"):
        setattr(settings, name, "production")
    assert settings.APP_ENV == "development"


@pytest.mark.parametrize(
    ("name", "given", "problem"),
    [
        ("DATABASE_POOL_SIZE", "canary", "must be a whole number from 1 to 100"),
        ("DATABASE_POOL_SIZE", "101", "must be a whole number from 1 to 100"),
        ("DATABASE_POOL_SIZE", "1.5", "must be a whole number from 1 to 100"),
        ("REFRESH_TOKEN_TTL", "59", "must be a whole number of at least 60"),
        ("DRAIN_TIMEOUT", "nan", "must be a number from 0 to 300"),
        ("DRAIN_TIMEOUT", "inf", "must be a number from 0 to 300"),
        ("KEY_ROTATION_PERIOD", "nan", "must be a number of at least 0"),
        ("KEY_ROTATION_PERIOD", "inf", "must be a finite number"),
        ("ALLOW_PLAINTEXT", "canary", "must be true or false"),
        ("APP_ENV", "canary", "must be 'development', 'staging' or 'production'"),
        ("JWT_KEY_ID", "canary/", "must have at most 64 characters and match ^[A-Za-z0-9._-]*\\Z"),
        ("JWT_KEY_ID", "canary\n", "must have at most 64 characters and match ^[A-Za-z0-9._-]*\\Z"),
        ("GRPC_ADDRESS", "canary:²", "must be HOST:PORT, such as 127.0.0.1:50051"),
        ("GRPC_ADDRESS", "canary:\u0665", "must be HOST:PORT, such as 127.0.0.1:50051"),
        ("RATE_LIMIT_READ", "²/60", "must be COUNT/SECONDS, such as 60/60 for sixty a minute"),
        ("PUBLIC_BASE_URL", "http://[canary]/", "must be a URL such as https://auth.example.com"),
        ("PUBLIC_BASE_URL", "http://u:canary\u2100@x/", "must be a URL such as https://auth.example.com"),
        ("DATABASE_URL", "postgresql://u:[canary]@db/x", "must be a URL; write signs of a password as %XX, such as %5B for ["),
        ("REDIS_URL", "redis://:canary\u2100@cache", "must be a URL; write signs of a password as %XX, such as %5B for ["),
        ("APP_NAME", "canary\udcff", "is not UTF-8 text"),
        ("DATABASE_POOL_SIZE", "5\udcff", "is not UTF-8 text"),
        ("INSTANCE_ID", "canary" * 20, "must have at most 100 characters"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "canary:4317", "must be a URL such as http://collector:4317"),
    ],
)
def test_what_is_wrong_is_told_by_what_is_wanted(name: str, given: str, problem: str) -> None:
    """And never by what was given, which may be a secret in the wrong place."""
    assert problems({**GOOD, name: given}, TokenSettings) == [f"{name} {problem}"]


@pytest.mark.parametrize(("given", "meant"), [("true", True), ("1", True), ("True\n", True), ("false", False), ("0", False), (" FALSE", False)])
def test_yes_and_no_have_two_spellings_each(given: str, meant: bool) -> None:
    assert load(ChassisSettings, {**GOOD, "REFLECTION": given}).REFLECTION is meant


def test_instances_of_a_context_agree_unless_they_differ_in_what_they_must_share() -> None:
    """What is an instance's own changes nothing; a secret counts, and cannot be guessed from what is told."""
    given = {**GOOD, "INSTANCE_ID": "a"}
    mark = load(TokenSettings, given).fingerprint()
    assert mark == load(TokenSettings, {**given, "INSTANCE_ID": "b", "LOG_LEVEL": "debug"}).fingerprint()
    for change in ({"ACCESS_TOKEN_TTL": "60"}, {"KEY_ENCRYPTION_KEY": "other"}, {"SECURITY_SALT": "other"}, {"REDIS_URL": "redis://other"}):
        assert mark != load(TokenSettings, {**given, **change}).fingerprint()


@pytest.mark.parametrize("encode", [msgspec.json.encode, msgspec.msgpack.encode, msgspec.to_builtins, pickle.dumps, copy.deepcopy])
def test_no_encoder_shows_a_secret(encode: Callable[[object], object]) -> None:
    with pytest.raises(TypeError):
        encode(load(ChassisSettings, GOOD))


@pytest.mark.parametrize("service", ["identity", "token", "rbac"])
def test_a_service_loads_nothing_of_another_to_know_its_settings(service: str) -> None:
    """The engine of permissions in each process of identity would weigh 5 MiB."""
    code = f"import sys, services.{service}.service; from services.chassis.settings import known_names; known_names(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    others = {"identity", "token", "rbac"} - {service}
    allowed = {f"services.{other}{module}" for other in others for module in ("", ".settings")} | {"services.rbac.levels"}
    assert {name for name in loaded if name.startswith(tuple(f"services.{other}" for other in others))} <= allowed


@pytest.mark.parametrize("password", ["short", "fourteen-chars", "aaaaaaaaaaaaaaaaaaaaaaaa", "abababababababababababab", "changeme"])
def test_production_refuses_a_weak_first_password(password: str) -> None:
    """Who guesses it first is the administrator. Elsewhere it is nobody's business."""
    given = {"SMTP_HOST": "mail", "PUBLIC_BASE_URL": "https://auth.example", "BOOTSTRAP_ADMIN_PASSWORD": password}
    assert load(IdentitySettings, {**GOOD, **given})

    (problem,) = problems({**PRODUCTION, **given}, IdentitySettings)

    assert problem.startswith("BOOTSTRAP_ADMIN_PASSWORD is weak")
    assert password not in problem
    assert load(IdentitySettings, {**PRODUCTION, **given, "BOOTSTRAP_ADMIN_PASSWORD": "kv7q-zjwx-pm4h-trbd"})


@pytest.mark.parametrize("password", ["postgres", "PASSWORD", "pass", "changeme", "watchword", "Admin", "secret"])
def test_production_refuses_a_well_known_database_password(password: str) -> None:
    """Examples are pasted; then everybody knows the way to every account."""
    url = f"postgresql://user:{password}@db/authdb"
    assert load(ChassisSettings, {**GOOD, "DATABASE_URL": url})

    (problem,) = problems({**PRODUCTION, "DATABASE_URL": url})

    assert problem.startswith("DATABASE_URL holds a well-known password")
    assert load(ChassisSettings, {**PRODUCTION, "DATABASE_URL": f"postgresql://user:{STRONG}@db/authdb"})


@pytest.mark.parametrize(
    "url", ["postgresql://user@db/authdb", "postgresql://user:@db/authdb", "postgresql://db/authdb", "postgresql://user@db/authdb?password="]
)
def test_production_refuses_a_database_without_a_password(url: str) -> None:
    """Whoever reaches the port would be everybody. At home it is nobody's business."""
    assert load(ChassisSettings, {**GOOD, "DATABASE_URL": url})

    assert problems({**PRODUCTION, "DATABASE_URL": url}) == [
        "DATABASE_URL holds no password, and APP_ENV is production: give the database user a random one"
    ]
    assert load(ChassisSettings, {**PRODUCTION, "DATABASE_URL": f"postgresql://user@db/authdb?password={STRONG}"})


@pytest.mark.parametrize("host", ["redis://{}cache:6379", "rediss://{}cache", "redis+sentinel://{}a:26379,b:26379/main", "redis+cluster://{}a:1,b:2"])
def test_production_refuses_redis_without_a_password_of_its_own(host: str) -> None:
    """Who writes there decides which instances are waited for, and counts failed logins."""
    for secret, fault in (("", "no password"), (":@", "no password"), ("default@", "no password"), (":changeme@", "a well-known password")):
        url = host.format(secret)
        assert load(ChassisSettings, {**GOOD, "REDIS_URL": url})
        assert problems({**PRODUCTION, "REDIS_URL": url}) == [f"REDIS_URL holds {fault}, and APP_ENV is production: give Redis a random one"]
    assert load(ChassisSettings, {**PRODUCTION, "REDIS_URL": host.format(f":{STRONG}@")})
