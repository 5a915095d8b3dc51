"""Real processes under load are killed, stopped and starved; afterwards a ledger is compared with PostgreSQL.

`python -m tests.faults` (`make faults`) runs the long, random part; `test_*.py` a few chosen moments.
"""
