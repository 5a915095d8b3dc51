"""Browser sessions in PostgreSQL, as Django keeps them, but deaf to keys that it never made."""

import re
from typing import Any

from django.contrib.sessions.backends.db import SessionStore as DatabaseStore

# what Django makes: 32 of these; old ones may differ in length
KEY = re.compile(r"[A-Za-z0-9]{8,40}", re.ASCII)


class SessionStore(DatabaseStore):
    """A cookie may hold any character, also NUL (as `"\\000"`), which PostgreSQL answers with an error."""

    stored = ""
    """the signed text as it stood in the table when it was read"""

    def load(self) -> dict[str, Any]:
        row = self._get_session_from_db()  # type: ignore[attr-defined]
        self.stored = row.session_data if row else ""
        return self.decode(self.stored) if row else {}

    def _validate_session_key(self, key: str | None) -> bool:
        return key is not None and KEY.fullmatch(key) is not None
