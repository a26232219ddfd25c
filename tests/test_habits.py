"""The files around the code agree with each other and with what they name: version, checks, forms, workflows."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
GITHUB = ROOT / ".github"
FORMS = sorted(path for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def read(name):
    return (ROOT / name).read_text()


def document(path):
    return yaml.safe_load((ROOT / path).read_text())


def workflow(name):
    """A workflow; YAML 1.1 reads its key `on` as True."""
    found = document(GITHUB / "workflows" / name)
    return {("on" if key is True else key): value for key, value in found.items()}


def steps(name):
    """What all jobs of a workflow do, in order."""
    return [step for job in workflow(name)["jobs"].values() for step in job["steps"]]


def test_the_version_is_the_same_wherever_it_is_written():
    entry = re.search(r"@software\{.*?^\}", read("README.md"), re.DOTALL | re.MULTILINE)[0]
    versions = {
        "CITATION.cff": document("CITATION.cff")["version"],
        "CHANGELOG.md": re.findall(r"^## \[(.*?)\]", read("CHANGELOG.md"), re.MULTILINE)[1],
        "README.md": re.search(r"version = \{(.*?)\}", entry)[1],
    }
    assert versions == dict.fromkeys(versions, PROJECT["version"])


def test_the_citation_is_the_readmes():
    citation = document("CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert (citation["cff-version"], citation["type"], citation["license"]) == ("1.2.0", "software", PROJECT["license"])
    assert citation["authors"] == PROJECT["authors"]
    plain = read("README.md").replace("\\_", "_").replace("{", "").replace("}", "").replace("\\'y", "ý")
    assert citation["title"] in plain and citation["authors"][0]["name"] in plain
    for paper in citation["references"]:
        names = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"])
        for said in (
            f"title = {paper['title']}",
            f"author = {names}",
            f"booktitle = {paper['collection-title']}",
            f"year = {paper['year']}",
        ):
            assert said in plain, said
        assert paper["identifiers"][0]["value"] in plain


def test_the_changelog_has_unreleased_on_top_and_then_dated_versions_the_newest_first():
    unreleased, *versions = re.findall(r"^## (.*)$", read("CHANGELOG.md"), re.MULTILINE)
    assert unreleased == "[Unreleased]"
    found = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d", heading) for heading in versions]
    assert all(found), versions
    numbers = [tuple(map(int, match[1].split("."))) for match in found]
    assert numbers == sorted(numbers, reverse=True)
    kinds = set(re.findall(r"^### (.*)$", read("CHANGELOG.md"), re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def tagged(folder, tag, changelog):
    """Exit status and words of .ci/tag in a folder with this changelog."""
    (folder / ".ci").mkdir()
    for name in (".ci/tag", "pyproject.toml"):
        (folder / name).write_text(read(name))
    (folder / "CHANGELOG.md").write_text(changelog)
    run = subprocess.run([sys.executable, folder / ".ci" / "tag", tag], capture_output=True, text=True, timeout=60, check=False)
    return run.returncode, run.stdout + run.stderr


@pytest.mark.parametrize(
    ("tag", "changelog", "said"),
    [
        ("v{}", "## [Unreleased]\n\n## [{}] - 2030-01-02\n\n- all\n", "v{} is version {}\n"),
        ("v{}.1", "## [Unreleased]\n\n## [{}] - 2030-01-02\n\n- all\n", "v{}.1: pyproject.toml has version {}, whose tag is v{}"),
        ("v{}", "## [Unreleased]\n\n- more\n\n## [{}] - 2030-01-02\n", "v{}: CHANGELOG.md has entries under Unreleased"),
        ("v{}", "## [Unreleased]\n\n## [{}]\n", "v{}: the newest version in CHANGELOG.md should read [{}] - YYYY-MM-DD, found [{}]"),
    ],
)
def test_a_tag_is_published_only_where_the_files_say_its_version(tmp_path, tag, changelog, said):
    tag, changelog, said = (text.replace("{}", PROJECT["version"]) for text in (tag, changelog, said))
    status, found = tagged(tmp_path, tag, changelog)
    assert said in found and (status == 0) == ("is version" in said)


def test_pre_commit_runs_what_make_lint_runs():
    (repository,) = document(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    hooks = repository["hooks"]
    assert all((hook["language"], hook["pass_filenames"]) == ("system", False) for hook in hooks)
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", read("Makefile"), re.MULTILINE)[1]
    assert [hook["entry"] for hook in hooks] == [line.strip().removeprefix("$(BIN)/") for line in recipe.splitlines()]


def test_the_hosted_workflow_runs_what_ci_runs_on_the_versions_that_it_needs():
    hosted = workflow("ci.yml")
    assert {"push", "pull_request"} <= hosted["on"].keys()
    (job,) = hosted["jobs"].values()
    assert steps("ci.yml")[-1]["run"] == ".ci/run" and (ROOT / ".ci/run").stat().st_mode & 0o111
    assert 90 < job["timeout-minutes"] <= 180
    (python,) = (step["with"] for step in steps("ci.yml") if step.get("uses", "").startswith("actions/setup-python@"))
    *newest, usual = python["python-version"].split()
    minor = "Programming Language :: Python :: 3."
    supported = [line.rsplit(" ", 1)[1] for line in PROJECT["classifiers"] if line.startswith(minor)]
    assert (usual, newest) == (supported[0], [supported[-1]])
    assert python["cache"] == "pip" and python["cache-dependency-path"] == "pyproject.toml"


def test_a_release_checks_the_tag_and_the_wheel_before_it_publishes_without_a_token():
    release = workflow("release.yml")
    assert release["on"] == {"push": {"tags": ["v*"]}}
    build, publish = release["jobs"]["build"], release["jobs"]["publish"]
    runs = [step["run"] for step in build["steps"] if "run" in step]
    assert [any(word in run for run in runs) for word in (".ci/tag", ".ci/wheel")] == [True, True]
    assert publish["needs"] == "build" and publish["permissions"] == {"id-token": "write"}
    assert "secrets." not in read(".github/workflows/release.yml")
    assert all(job["timeout-minutes"] <= 60 for job in (build, publish))


@pytest.mark.parametrize("name", ["ci.yml", "release.yml"])
def test_workflows_may_read_only_and_name_a_version_of_every_action(name):
    assert workflow(name)["permissions"] == {"contents": "read"}
    actions = [step["uses"] for step in steps(name) if "uses" in step]
    assert actions and all(re.fullmatch(r"[\w-]+/[\w-]+@[\w./]+", action) for action in actions)


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_forms_are_what_the_host_expects(path):
    form = document(path)
    assert form.keys() <= {"name", "description", "title", "labels", "body"} and {"name", "description", "body"} <= form.keys()
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert fields and {field["type"] for field in form["body"]} <= {"markdown", "input", "textarea", "dropdown", "checkboxes"}
    ids = [field["id"] for field in fields]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[\w-]+", name) for name in ids)
    assert all(field.keys() <= {"type", "id", "attributes", "validations"} for field in fields)
    assert all(isinstance(field["attributes"]["label"], str) for field in fields)
    allowed = {"label", "description", "placeholder", "value", "render"}
    assert all(field["attributes"].keys() <= allowed and isinstance(field["attributes"].get("description", ""), str) for field in fields)
    assert all("render" not in field["attributes"] for field in fields if field["type"] == "input")
    assert all("value" in field["attributes"] for field in form["body"] if field["type"] == "markdown")


def test_issue_forms_ask_for_what_helps():
    asked = {path.stem: {field["id"]: field for field in document(path)["body"] if "id" in field} for path in FORMS}
    assert asked.keys() == {"unknown_checkpoint", "wrong_number"}
    assert "--inspect" in asked["unknown_checkpoint"]["inspect"]["attributes"]["description"]
    assert asked["unknown_checkpoint"]["inspect"]["validations"] == asked["wrong_number"]["command"]["validations"] == {"required": True}


def test_what_the_files_around_the_code_name_is_there():
    for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"):
        for path in re.findall(r"`((?:\.ci|\.github|\.pre-commit|tests|docs|benchmarks|und3rstand_jax)[\w./-]*)", read(name)):
            assert (ROOT / path).exists(), path
    makefile = read("Makefile")
    for target in re.findall(r"make ([\w-]+)", re.sub(r"Python.*and make\.", "", read("CONTRIBUTING.md"))):
        assert re.search(rf"^{target}\b.*:", makefile, re.MULTILINE), target
    # What it quotes from the code is there.
    assert "Decoded, as the loader does it: a header may say another size or orientation" in read("und3rstand_jax/model/images.py")


def test_every_upper_bound_is_explained_and_every_bound_that_is_explained_is_set():
    listed = [*PROJECT["dependencies"], *(line for lines in PROJECT["optional-dependencies"].values() for line in lines)]
    explained = set(re.findall(r"^\| `([^`]+)` \|", read("docs/versions.md").split("## Bounds")[1], re.MULTILINE))
    assert {line for line in listed if "<" in line} <= explained <= set(listed)


def test_dependabot_moves_only_bounds_that_the_newest_version_breaks():
    updates = document(".github/dependabot.yml")["updates"]
    assert [update["package-ecosystem"] for update in updates] == ["pip", "github-actions"]
    assert updates[0]["versioning-strategy"] == "increase-if-necessary"
    assert all(update["groups"] for update in updates)


def test_no_address_is_made_up():
    """Nobody's mail, and no address of the project, which has no public one yet."""
    for name in ("SECURITY.md", "CONTRIBUTING.md", "CITATION.cff", "CHANGELOG.md"):
        assert not re.search(r"[\w.]+@[\w-]+\.\w+|github\.com/", read(name)), name
    assert all(url.startswith("https://arxiv.org/abs/") for url in PROJECT["urls"].values())
