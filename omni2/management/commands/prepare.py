"""`manage.py prepare`: what the containers need before they start; `up` does the same by itself."""

from typing import Any

from django.core.management.base import BaseCommand

from omni2 import env
from omni2.supervisor import prepare


class Command(BaseCommand):
    help = "Migrate the database and, when OMNI2_ADMIN_PASSWORD is set, make the admin's account. Repeatable."

    def handle(self, *args: Any, **options: Any) -> None:
        prepare.wait_for_database(self.stdout.write)
        prepare.migrate(self.stdout.write)
        password = env.text("OMNI2_ADMIN_PASSWORD")
        if not password:
            self.stdout.write("OMNI2_ADMIN_PASSWORD is not set: no account is made (see manage.py create_user)")
            return
        admin = prepare.admin(env.admin_email(), lambda: password)
        self.stdout.write(f"{'made' if admin.made else 'kept'} the account {admin.email}")
