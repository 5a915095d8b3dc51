"""docs/dependencies.md says of each package named in a requirements file why it is there, and of no other."""

import re

from omni2.env import BASE_DIR


def required(file: str) -> set[str]:
    lines = (BASE_DIR / file).read_text().splitlines()
    return {re.split(r"[\[=<>~; ]", line)[0].lower() for line in lines if line and line[0] not in "#-"}


def test_each_direct_dependency_is_explained_once() -> None:
    rows = re.findall(r"^\| ([A-Za-z0-9-]+) \|", (BASE_DIR / "docs" / "dependencies.md").read_text(), re.MULTILINE)
    names = [row.lower() for row in rows if row != "package"]
    assert len(names) == len(set(names))
    wanted = required("requirements.in") | required("requirements-dev.in") | required("requirements-model.txt")
    assert set(names) == wanted


def test_each_is_pinned_to_one_version() -> None:
    for source, pinned in (("requirements.in", "requirements.txt"), ("requirements-dev.in", "requirements-dev.txt")):
        text = (BASE_DIR / pinned).read_text().lower()
        for name in required(source):
            assert re.search(rf"^{re.escape(name)}(\[[a-z,]+\])?==\S+", text, re.MULTILINE), (name, pinned)
