"""What the environment says about keys: the pair to sign with, what seals private parts, and when keys change."""

import os
from collections.abc import Mapping
from datetime import timedelta

import structlog

from services.chassis.settings import SettingsError
from services.token.key_pairs import KeyPair, open_files, read
from services.token.rotation import Policy
from services.token.settings import TokenSettings
from services.token.vault import Vault

log = structlog.get_logger()


def vault_of(settings: TokenSettings) -> Vault:
    """Return what seals private parts. Raises SettingsError."""
    try:
        return Vault.of(settings.KEY_ENCRYPTION_KEY.reveal(), settings.SECURITY_SALT.reveal())
    except ValueError as error:
        raise SettingsError([f"KEY_ENCRYPTION_KEY {error}"]) from None


def policy_of(settings: TokenSettings) -> Policy:
    """Return when keys change."""
    return Policy(
        algorithm=settings.JWT_ALGORITHM,
        period=timedelta(seconds=settings.KEY_ROTATION_PERIOD),
        max_age=timedelta(seconds=settings.JWKS_MAX_AGE),
        limit=timedelta(seconds=settings.KEY_PROMOTION_LIMIT),
    )


def key_pair_of(settings: TokenSettings, environment: Mapping[str, str] = os.environ) -> KeyPair | None:
    """Return the environment's key pair, if there is one. Raises UnusableKey; SettingsError if others can read its file."""
    _judge_files(environment, settings.ALLOW_OPEN_KEY_FILE)
    private = settings.JWT_PRIVATE_KEY.reveal()
    if not private:
        return None
    others = (settings.SERVICE_KEY.reveal(), settings.TLS_KEY.reveal())
    return read(private, settings.JWT_PUBLIC_KEY, algorithm=settings.JWT_ALGORITHM, kid=settings.JWT_KEY_ID, others=others)


def _judge_files(environment: Mapping[str, str], allowed: bool) -> None:
    problems = list(open_files(environment))
    if problems and not allowed:
        raise SettingsError(problems)
    for problem in problems:
        log.warning("key_file_open", problem=problem)
