"""What a stranger reads once the stack is ready: where things are, and five lines to paste."""

from shlex import quote

from services.up.endpoints import Endpoints

LINES = """\
The administrator's one-time password becomes "my " and itself (once; later it answers INVALID_CREDENTIALS):
  curl -s {rest}/v1/auth/login -H 'content-type: application/json' -d '{{"login":"{email}","password":"'"$(cat {password})"'","new_password":"my '"$(cat {password})"'"}}'
1. Register:
  curl -s {rest}/v1/auth/register -H 'content-type: application/json' -d '{{"email":"ada@example.com","password":"correct horse battery staple"}}'
2. Log in:
  TOKEN=$(curl -s {rest}/v1/auth/login -H 'content-type: application/json' -d '{{"login":"{email}","password":"my '"$(cat {password})"'"}}' | sed 's/.*"access_token": *"\\([^"]*\\)".*/\\1/')
3. Verify a token:
  curl -s {rest}/v1/tokens:verify -H 'content-type: application/json' -H "authorization: Bearer $TOKEN" -d '{{"token":"'"$TOKEN"'"}}'
4. Check a permission:
  curl -s {rest}/v1/permissions:check -H 'content-type: application/json' -H "authorization: Bearer $TOKEN" -d '{{"subject":{{"type":"SUBJECT_TYPE_USER","id":"'"$(curl -s {rest}/v1/me -H "authorization: Bearer $TOKEN" | sed 's/.*"user": *{{ *"id": *"\\([^"]*\\)".*/\\1/')"'"}},"permission":"users.read"}}'
5. Revoke the token; line 3 is refused from now on, whichever instance answers:
  curl -s {rest}/v1/tokens:revoke -H 'content-type: application/json' -H "authorization: Bearer $TOKEN" -d '{{"token":"'"$TOKEN"'"}}'
"""  # noqa: E501  (each is one line to paste)


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
    return LINES.format(rest=endpoints.rest, email=endpoints.admin_email, password=quote(endpoints.admin_password_file))
