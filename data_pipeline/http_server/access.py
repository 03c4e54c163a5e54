"""Who may see the page and the API: everybody on this machine, and from elsewhere who has the token."""

import hmac
import ipaddress
from collections.abc import Sequence
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

COOKIE = "gex_bridge_token"
NO_TOKEN = "The bridge listens beyond this machine: set API_TOKEN to see its page and API"
WRONG_TOKEN = "A token is needed: open /?token=API_TOKEN once, or send Authorization: Bearer API_TOKEN"


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Access:
    """host: the address the bridge listens on; token: API_TOKEN, empty for none."""

    def __init__(self, host: str, token: str):
        self._open = is_loopback(host)
        self._token = token

    def refusal(self, query: str, cookies: Sequence[str], authorization: str) -> str | None:
        """Why a request may not see anything; None where it may.  cookies: the Cookie headers."""
        if self._open:
            return None
        if not self._token:
            return NO_TOKEN
        given = [*parse_qs(query).get("token", []), authorization.removeprefix("Bearer "), *map(_cookie, cookies)]
        # In constant time, so that nobody finds the token letter by letter.
        if any(hmac.compare_digest(one.encode(errors="replace"), self._token.encode()) for one in given):
            return None
        return WRONG_TOKEN

    def new_cookie(self, query: str) -> str | None:
        """The Set-Cookie header of an allowed visit with `?token=`, after which the page asks with the cookie."""
        if self._open or "token" not in parse_qs(query):
            return None
        made: SimpleCookie = SimpleCookie()
        made[COOKIE] = self._token
        made[COOKIE]["httponly"], made[COOKIE]["samesite"], made[COOKIE]["path"] = True, "Strict", "/"
        return made[COOKIE].OutputString()


def _cookie(header: str) -> str:
    try:
        found = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""
