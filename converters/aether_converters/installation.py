"""How this package came to be installed, and so how more of it is.

pip notes where it took a package from, unless that was an index. What it noted is named again:
advice that leads to a place where nothing is helps nobody.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, requires, version
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import urlsplit
from urllib.request import url2pathname

NAME: Final = "aether-spandrel"
CHECKOUT: Final = Path(__file__).parents[2]
"""Where this file lies if it was not installed at all, but is run where it was written."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where this package was installed from.

    Attributes:
        local: A folder or wheel of this computer, whether it is still there or not.
        address: What pip takes from the network behind the package's name and an `@`.
        editable: Whether the folder is used in place.
    """

    local: Path | None = None
    address: str = ""
    editable: bool = False

    @property
    def gone(self) -> bool:
        """Whether it can not be installed from there again."""
        return self.local is not None and not self.local.exists()

    def requirement(self, extra: str = "") -> str:
        """What pip has to be told to install this package again, with an extra if one is named."""
        more = f"[{extra}]" if extra else ""
        if self.local is not None:
            return f'"{self.local}{more}"'
        if self.address:
            return f'"{NAME}{more} @ {self.address}"'
        return f'"{NAME}{more}"' if more else NAME


def origin() -> Origin:
    """Where this package was installed from; with neither place nor address it was an index."""
    try:
        text = distribution(NAME).read_text("direct_url.json")
    except PackageNotFoundError:
        return Origin(local=CHECKOUT, editable=True)
    return read_origin(text) if text else Origin()


def read_origin(text: str) -> Origin:
    """What a `direct_url.json` says (PEP 610)."""
    noted = cast("dict[str, Any]", json.loads(text))
    url = str(noted.get("url", ""))
    if url.startswith("file://"):
        folder: dict[str, Any] = noted.get("dir_info") or {}
        path = Path(url2pathname(urlsplit(url).path))
        return Origin(local=path, editable=bool(folder.get("editable")))
    source: dict[str, Any] = noted.get("vcs_info") or {}
    if not source:
        return Origin(address=url)
    revision = source.get("requested_revision") or source.get("commit_id") or ""
    return Origin(address=f"{source.get('vcs')}+{url}{'@' if revision else ''}{revision}")


def requirement() -> str:
    """What pip has to be told to install this package into another Python."""
    found = origin()
    return NAME if found.gone else found.requirement()


def pip(arguments: str) -> str:
    """A line that installs into this Python, whatever `pip` on the PATH belongs to."""
    return f'"{sys.executable or "python"}" -m pip {arguments}'


def install_line(extra: str) -> str:
    """The line that brings an extra to this installation."""
    found = origin()
    if found.gone:  # the packages that it consists of are elsewhere
        return pip(f"install {' '.join(sorted(_packages(extra)))}")
    return pip(f"install {'-e ' if found.editable else ''}{found.requirement(extra)}")


def _packages(extra: str) -> Iterator[str]:
    """Those that an extra brings, each as pip takes it; of extras within it, a wheel lists all."""
    for line in requires(NAME) or []:
        package, _, marker = line.partition(";")
        if re.search(rf"""extra\s*==\s*['"]{re.escape(extra)}['"]""", marker):
            yield f'"{package.strip()}"'


def is_public() -> bool:
    """Whether others can install this package from where this installation came from."""
    return origin().local is None


def public_requirement(extra: str = "") -> str:
    """What other people can tell pip: a name, an address, or a wheel that they have been given.

    A folder or wheel of this computer is of no use to them, and no business of theirs.
    """
    if is_public():
        return origin().requirement(extra)
    return f'"{wheel_name()}[{extra}]"' if extra else wheel_name()


def wheel_name() -> str:
    """The name of this version's wheel, as pip builds it."""
    return f"{NAME.replace('-', '_')}-{version(NAME)}-py3-none-any.whl"


def wheel_line(folder: Path) -> str:
    """The line that puts this version's wheel into a folder."""
    return pip(f'wheel --no-deps --wheel-dir "{folder}" {requirement()}')
