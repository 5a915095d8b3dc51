"""To whom a model or a tool server is offered (chat.models.Offered): one condition for every statement that asks."""

from chat.models import Offered


def offered_to(kind: type[Offered], row: str, user: str) -> str:
    """SQL: whether `row`, the alias of a row of that table, is offered to the user with the key `user`, an SQL
    expression: to everybody, to one of his groups, or to himself. Whether it is enabled is not looked at."""
    name = kind._meta.model_name
    groups, users = kind.groups.through._meta.db_table, kind.users.through._meta.db_table
    this = f"{name}_id = {row}.id"
    return f"""(NOT EXISTS (SELECT FROM {groups} WHERE {this}) AND NOT EXISTS (SELECT FROM {users} WHERE {this})
        OR EXISTS (SELECT FROM {groups} AS theirs JOIN users_groups AS his USING (group_id)
                   WHERE theirs.{this} AND his.user_id = {user})
        OR EXISTS (SELECT FROM {users} AS single WHERE single.{this} AND single.user_id = {user}))"""  # noqa: S608 - names
