"""PostgreSQL as Django's backend knows it, with a pool that lends no dead connection and asks nobody to know."""
