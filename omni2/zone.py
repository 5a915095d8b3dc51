"""The viewer's time zone: static/js/zone.js puts its name into a cookie, the server counts days by it."""

import re
from zoneinfo import ZoneInfo

from django.http import HttpRequest

COOKIE = "zone"
UTC = ZoneInfo("UTC")
# as the IANA spells them: nothing else of what a cookie may hold is looked for on the disk
_NAME = re.compile(r"[A-Za-z0-9_+-]{1,20}(/[A-Za-z0-9_+-]{1,30}){0,2}", re.ASCII)


def zone_of(request: HttpRequest) -> ZoneInfo:
    """The zone the browser names, if there is such a zone; UTC otherwise. One small file is read, once a zone."""
    name = request.COOKIES.get(COOKIE, "")
    try:
        return ZoneInfo(name) if _NAME.fullmatch(name) else UTC
    except (KeyError, ValueError, OSError):  # no such zone, no such file, a folder of zones
        return UTC
