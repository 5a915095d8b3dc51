from django.apps import AppConfig


class MonitoringConfig(AppConfig):
    name = "monitoring"
    label = "monitoring"
    verbose_name = "Monitoring"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Let the history know how long it is kept."""
        # models can be imported only now
        from flows.retention import use_retention  # noqa: PLC0415
        from monitoring import config  # noqa: PLC0415

        use_retention(lambda: config.retention().days)
