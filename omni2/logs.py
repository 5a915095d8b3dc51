"""Log lines for people (`LOG_FORMAT=text`) or machines (`json`), with the turn's id when there is one.

Log calls pass it as `extra={"turn_id": ...}`. No token, password or full prompt is ever logged.
"""

import json
import logging
from datetime import UTC, datetime


class TextFormatter(logging.Formatter):
    """`2026-11-22T06:00:00.123Z INFO flows.persister message turn_id=…`"""

    def format(self, record: logging.LogRecord) -> str:
        stamp = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        turn_id = getattr(record, "turn_id", None)
        tail = f" turn_id={turn_id}" if turn_id else ""
        line = f"{stamp} {record.levelname} {record.name} {record.getMessage()}{tail}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, turn_id, exception."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC)
            .isoformat(timespec="milliseconds")
            .replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        turn_id = getattr(record, "turn_id", None)
        if turn_id:
            entry["turn_id"] = str(turn_id)
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)
