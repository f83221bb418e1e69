"""What a stranger reads once the stack is ready: where things are, and five lines to paste."""

from shlex import quote

from services.up.endpoints import Endpoints

LINES = """\
1. Once: replace the administrator's one-time password; the new one is "my " and the old one:
  curl -s {rest}/v1/auth/login -H content-type:application/json -d '{{"login":"{email}","password":"'"$(cat {password})"'","new_password":"my '"$(cat {password})"'"}}'
2. Log in twice: $ADMIN will ask about $TOKEN:
  ADMIN=$({login}); TOKEN=$({login})
3. Verify the token, and check a permission of whom it speaks for:
  curl -s {rest}/v1/tokens:verify -H "authorization: Bearer $ADMIN" -H content-type:application/json -d '{{"token":"'$TOKEN'"}}'; curl -s {rest}/v1/permissions:check -H "authorization: Bearer $ADMIN" -H content-type:application/json -d '{{"subject":{{"type":"SUBJECT_TYPE_USER","id":"'$(curl -s {rest}/v1/me -H "authorization: Bearer $TOKEN" | sed -E 's/.*"id": ?"([^"]+)".*/\\1/')'"}},"permission":"users.read"}}'
4. Revoke the token:
  curl -s {rest}/v1/tokens:revoke -H "authorization: Bearer $TOKEN" -H content-type:application/json -d '{{"token":"'$TOKEN'"}}'
5. Verify it again: REVOKED, whichever instance answers:
  curl -s {rest}/v1/tokens:verify -H "authorization: Bearer $ADMIN" -H content-type:application/json -d '{{"token":"'$TOKEN'"}}'
"""  # noqa: E501  (each is one line to paste)

LOGIN = """\
curl -s {rest}/v1/auth/login -H content-type:application/json -d '{{"login":"{email}","password":"my '"$(cat {password})"'"}}' | sed -E 's/.*"access_token": ?"([^"]+)".*/\\1/'"""  # noqa: E501  (a part of such a line)


def new_password(one_time: str) -> str:
    """Return what the walk-through replaces the one-time password by: only who may read the one knows the other."""
    return f"my {one_time}"


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
    login = LOGIN.format(rest=endpoints.rest, email=endpoints.admin_email, password=password)
    return LINES.format(rest=endpoints.rest, email=endpoints.admin_email, password=password, login=login)
