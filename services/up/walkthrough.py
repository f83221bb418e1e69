"""What a stranger reads once the stack is ready: where things are, and five lines to paste."""

from shlex import quote

from services.up.endpoints import Endpoints

PASSWORD = "a fine day to replace 1 password"  # noqa: S105  (what the walk-through suggests, and the tests then use)

LINES = """\
1. Replace the administrator's one-time password, and log in twice (the second time gives the token that we shall revoke):
  ADMIN=$(curl -s {rest}/v1/auth/login -d '{{"login":"{email}","password":"'$(cat {password})'","new_password":"{new}"}}' | {take}); TOKEN=$(curl -s {rest}/v1/auth/login -d '{{"login":"{email}","password":"{new}"}}' | {take})
2. Verify the token:
  curl -s {rest}/v1/tokens:verify -H "authorization: Bearer $ADMIN" -d '{{"token":"'$TOKEN'"}}'
3. Check a permission of whom the token speaks for:
  curl -s {rest}/v1/permissions:check -H "authorization: Bearer $ADMIN" -d '{{"subject":{{"type":"SUBJECT_TYPE_USER","id":"'$(curl -s {rest}/v1/me -H "authorization: Bearer $TOKEN" | sed -E 's/.*"id": ?"([^"]+)".*/\\1/')'"}},"permission":"users.read"}}'
4. Revoke the token:
  curl -s {rest}/v1/tokens:revoke -H "authorization: Bearer $TOKEN" -d '{{"token":"'$TOKEN'"}}'
5. Verify it again: REVOKED, whichever instance answers:
  curl -s {rest}/v1/tokens:verify -H "authorization: Bearer $ADMIN" -d '{{"token":"'$TOKEN'"}}'
"""  # noqa: E501  (each is one line to paste)

TAKE_TOKEN = """sed -E 's/.*"access_token": ?"([^"]+)".*/\\1/'"""


def summary(endpoints: Endpoints) -> str:
    """Return the addresses and where the first administrator's password and the mail are."""
    password = endpoints.admin_password_file or "(the one in BOOTSTRAP_ADMIN_PASSWORD)"
    return "\n".join(
        [
            f"  REST   {endpoints.rest}",
            f"  gRPC   {endpoints.grpc}",
            f"  admin  {endpoints.admin_email}, one-time password in {password}",
            f"  mail   {endpoints.mail_dir or '(sent by SMTP)'}",
        ]
    )


def lines(endpoints: Endpoints) -> str:
    """Return curl lines that work when pasted into a shell; empty if the password is in no file that they could read."""
    if not endpoints.admin_password_file:
        return ""
    password = quote(endpoints.admin_password_file)
    return LINES.format(rest=endpoints.rest, email=endpoints.admin_email, password=password, new=PASSWORD, take=TAKE_TOKEN)
