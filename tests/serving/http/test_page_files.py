"""The web page's files: nothing from outside, nothing that the policy forbids."""

import re
from importlib.resources import files

import pytest
from sites import Host, Site

from lssgen.serving.http.app import PAGE_FILES


@pytest.mark.parametrize("path", PAGE_FILES)
def test_a_file_of_the_page_is_served_with_its_type_and_policy(site: Site, path: str) -> None:
    name, kind = PAGE_FILES[path]
    answer = site.http.get(path)
    assert answer.headers["content-type"].startswith(kind)
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    text = (files("lssgen.serving.http") / "page" / name).read_text()
    assert answer.text == text
    assert not re.search(r"https?://|//[a-z]+\.", text), "no outside address"
    assert not re.search(r"\son[a-z]+=|<style|style=", text), "no code and no style in the page itself"


def test_the_page_can_be_left_out(host: Host) -> None:
    with host(settings={"page": False}) as site:
        assert site.http.get("/").status_code == 404
