#!/usr/bin/env python
"""Django's command line for Omni2."""

import os
import sys


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "omni2.settings")
    from django.core.management import execute_from_command_line
    from django.db import OperationalError

    from omni2.env import EnvironmentProblem
    from omni2.lasting import look_less_often

    look_less_often()
    try:
        execute_from_command_line(sys.argv)
    except EnvironmentProblem as problem:
        sys.exit(f"omni2: {problem}")
    except OperationalError as problem:
        # without a code it is not PostgreSQL that speaks: nobody answered
        if getattr(problem.__cause__, "sqlstate", None):
            raise
        sys.exit(f"omni2: PostgreSQL does not answer: start `make run` first, or set DATABASE_URL ({problem})")


if __name__ == "__main__":
    main()
