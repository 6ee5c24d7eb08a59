"""Optional packages."""

import sys

import pytest

from pcam.errors import UserError
from pcam.extras import import_extra


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.delitem(sys.modules, "captum.attr", raising=False)
    with pytest.raises(UserError, match=r"Expected the package captum, .* pip install 'pcam\[explain\]'"):
        import_extra("captum.attr", "explain")
