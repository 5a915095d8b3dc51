"""The database backend of the settings (Django wants it in a module of this name).

A restarted PostgreSQL leaves dead connections in the pool. Django's own check asks PostgreSQL over each connection
before it is lent, a round trip of its own before each statement. But a server that ends closes its side, and that is
seen here without asking anybody: nothing may come on a connection that nobody uses. What cannot be seen, a server
that vanished with its whole machine, the check would have to wait for just as the statement does.
"""

import select
from typing import Any

from django.db.backends.postgresql import base


class DatabaseWrapper(base.DatabaseWrapper):
    """Django's, but for the connections it takes from the pool."""

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        while True:
            connection = super().get_new_connection(conn_params)
            pool = self.pool
            if pool is None or _is_quiet(connection):
                return connection
            connection.close()
            # it is replaced by a new one
            pool.putconn(connection)


def _is_quiet(connection: Any) -> bool:
    """Nothing waits to be read: neither the end of the connection nor the words before it."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN | select.POLLRDHUP)
    return not poll.poll(0)
