from zoneinfo import ZoneInfo

from django.apps import AppConfig
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured


class ChatConfig(AppConfig):
    name = "chat"
    label = "chat"
    verbose_name = "Chat"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Let the ledger know who was let in. A day that begins nowhere would only be noticed by the first user
        who asks."""
        # models can be imported only now
        from chat.slots import admitted  # noqa: PLC0415
        from flows.ledger import use_admissions  # noqa: PLC0415

        use_admissions(admitted)
        try:
            ZoneInfo(settings.USAGE_TZ)
        except (KeyError, ValueError, OSError):
            raise ImproperlyConfigured(f"OMNI2_USAGE_TZ must name a time zone, not {settings.USAGE_TZ!r}") from None
