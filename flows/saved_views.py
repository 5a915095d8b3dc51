"""Views somebody keeps under a name: the filters of a page, to come back to.

What is kept is the page's query as it stood in its address, so a relative time ("last 24 hours")
stays relative. A view shows its owner nothing he may not see: it is only a link.
"""

from typing import Any, ClassVar
from urllib.parse import parse_qsl, urlencode

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.db import IntegrityError, models, transaction
from django.db.models.functions import Now

PAGES = ("/flows/", "/analytics/")
# Where one is in a list is no part of what is kept.
NOT_KEPT = frozenset({"cursor", "from"})
NAME_LENGTH_MAX = 80
QUERY_LENGTH_MAX = 4000
VIEWS_MAX = 50


class SavedView(models.Model):
    """A page with its filters, under a name of its owner's."""

    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="saved_views")
    name = models.CharField(max_length=NAME_LENGTH_MAX)
    page = models.CharField(max_length=40)
    query = models.CharField(max_length=QUERY_LENGTH_MAX, blank=True)
    changed_at = models.DateTimeField(db_default=Now())

    objects: ClassVar["models.Manager[SavedView]"] = models.Manager()

    class Meta:
        db_table = "saved_views"
        default_permissions = ()
        ordering = ["name", "id"]
        constraints = [models.UniqueConstraint(fields=["owner", "name"], name="one_view_of_a_name")]

    def __str__(self) -> str:
        return self.name

    @property
    def address(self) -> str:
        return f"{self.page}?{self.query}" if self.query else self.page

    @classmethod
    def keep(cls, owner: Any, name: str, page: str, query: str) -> tuple["SavedView", bool]:
        """Keep the filters under this name, in place of those it had; whether it is new. Raises ValidationError."""
        name, query = checked_name(name), kept_query(query)
        if page not in PAGES:
            raise ValidationError("There are no views of this page.")
        with transaction.atomic():
            # one at a time for each owner, so that the limit holds
            get_user_model().objects.select_for_update().get(pk=owner.pk)
            view = cls.objects.filter(owner=owner, name=name).first()
            if view is None and cls.objects.filter(owner=owner).count() >= VIEWS_MAX:
                raise ValidationError(f"You have {VIEWS_MAX} views already. Delete one first.")
            return cls.objects.update_or_create(
                owner=owner, name=name, defaults={"page": page, "query": query, "changed_at": Now()}
            )

    def rename(self, name: str) -> None:
        """Raises ValidationError: no name, or one that another view of the owner's has."""
        self.name = checked_name(name)
        try:
            with transaction.atomic():
                self.save(update_fields=["name"])
        except IntegrityError:
            raise ValidationError(f"You have another view that is called “{self.name}”.") from None


def checked_name(name: str) -> str:
    """The name without spaces around it. Raises ValidationError."""
    name = " ".join(name.split())
    if not name:
        raise ValidationError("A view needs a name.")
    if len(name) > NAME_LENGTH_MAX:
        raise ValidationError(f"A name has at most {NAME_LENGTH_MAX} characters.")
    if not name.isprintable():
        raise ValidationError("This cannot be a name.")
    return name


def kept_query(query: str) -> str:
    """What is kept of a query: every filter that is filled in. Raises ValidationError."""
    pairs = [(key, value) for key, value in parse_qsl(query.removeprefix("?")) if key not in NOT_KEPT]
    kept = urlencode(pairs)
    if len(kept) > QUERY_LENGTH_MAX:
        raise ValidationError("These filters are too long to keep.")
    return kept
