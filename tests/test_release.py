"""What a release is made of: workflows, the documentation's site, and the checks of `make release-check`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from support import ROOT

sys.path.append(str(ROOT / "scripts"))
import release_check
import site_links

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text()


def steps(path: Path) -> list[dict[str, Any]]:
    """Every step of a workflow's jobs."""
    jobs = yaml.safe_load(path.read_text())["jobs"].values()
    return [step for job in jobs for step in job.get("steps", ())]


def test_there_are_three_workflows() -> None:
    assert [path.stem for path in WORKFLOWS] == ["docs", "release", "test"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_is_one(path: Path) -> None:
    """By GitHub's schema; what it calls exists; and it grants nothing that a job does not name."""
    program = Path(sys.executable).with_name("check-jsonschema")
    subprocess.run([program, "--builtin-schema", "vendor.github-workflows", path], check=True)
    value = yaml.safe_load(path.read_text())
    assert value["permissions"] == {"contents": "read"}
    assert all("timeout-minutes" in job or "uses" in job for job in value["jobs"].values())
    text = path.read_text()
    for targets in re.findall(r"\bmake ((?:[a-z-]+ ?)+)", text):
        for target in targets.split():
            assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), target
    for file in re.findall(r"(?:deploy|tests|\.github)/[\w./-]+", text):
        assert (ROOT / file).exists(), file


def test_every_action_is_pinned_to_a_commit() -> None:
    """A tag can be moved to other code, which then runs with the workflow's rights."""
    for path in WORKFLOWS:
        for used in re.findall(r"uses: (.*)", path.read_text()):
            assert used.startswith("./") or re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40} # v[\d.]+", used), (
                used
            )
    program = Path(sys.executable).with_name("check-jsonschema")
    dependabot = ROOT / ".github" / "dependabot.yml"
    subprocess.run([program, "--builtin-schema", "vendor.dependabot", dependabot], check=True)


def test_no_step_runs_what_an_event_says() -> None:
    """A branch or tag name in a script would be run as a part of it; it is handed over as a variable."""
    for path in WORKFLOWS:
        for step in steps(path):
            assert "${{" not in step.get("run", ""), step


def test_a_release_is_published_only_after_the_tests() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())["jobs"]
    assert jobs["build"]["needs"] == "test"
    assert {name: jobs[name]["needs"] for name in ("pypi", "image")} == {"pypi": "build", "image": "build"}
    assert jobs["pypi"]["permissions"] == {"id-token": "write"}  # no token is stored
    names = [step.get("uses", step.get("run", "")) for step in jobs["image"]["steps"]]
    assert any("cosign sign" in name for name in names)
    (push,) = (step for step in jobs["image"]["steps"] if "build-push" in step.get("uses", ""))
    assert push["with"]["sbom"] is True


def test_a_release_has_the_version_of_its_tag_and_a_changelog() -> None:
    release_check.check_version("0.2.0.dev0", "")
    with pytest.raises(SystemExit, match=r"the tag is v0\.2\.0, but __version__"):
        release_check.check_version("0.2.0.dev0", "v0.2.0")
    with pytest.raises(SystemExit, match=r"CHANGELOG.md has no section \[9\.9\]"):
        release_check.check_version("9.9", "v9.9")


def test_the_addresses_of_the_project_are_those_of_the_repository() -> None:
    urls = {"Repository": "https://github.com/a/b"}
    release_check.check_names(urls, {})
    release_check.check_names(urls, {"GITHUB_REPOSITORY": "a/b"})
    with pytest.raises(SystemExit, match="this is a/c"):
        release_check.check_names(urls, {"GITHUB_REPOSITORY": "a/c"})


def test_the_site_has_every_page_and_loads_no_font() -> None:
    value = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    named = re.findall(r"[\w-]+\.md", yaml.safe_dump(value["nav"]))
    assert sorted(named) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))
    assert value["theme"]["font"] is False
    assert value["plugins"] == ["search"]


def test_links_out_of_the_docs_lead_to_the_repository() -> None:
    page = site_links.on_page_markdown(
        "[a](../README.md) [b](b.md)", config={"extra": {"repository": "https://x/y"}}
    )
    assert page == "[a](https://x/y/blob/main/README.md) [b](b.md)"
