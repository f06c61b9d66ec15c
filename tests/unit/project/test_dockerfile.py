"""Plain properties of the image, which no test builds."""

import re
import shlex
import tomllib

import pytest

from tests.documents import ROOT

SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|KEY", re.IGNORECASE)
PACKAGES = {"schemas", "workers", "pipeline", "runtime"}


@pytest.fixture(scope="module")
def steps() -> list[tuple[str, str]]:
    """Instruction and arguments, comments and line ends taken out."""
    text = (ROOT / "deploy" / "Dockerfile").read_text("utf-8")
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    pairs = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    return [(name, arguments) for name, arguments in pairs]


def copied(steps: list[tuple[str, str]]) -> list[list[str]]:
    """Sources of each COPY."""
    found = [shlex.split(arguments) for name, arguments in steps if name == "COPY"]
    return [[word for word in words[:-1] if not word.startswith("--")] for words in found]


def test_the_base_is_pinned(steps: list[tuple[str, str]]) -> None:
    assert steps[0][0] == "ARG"
    assert re.fullmatch(r"BASE=nvidia/cuda:\d+\.\d+\.\d+-base-ubuntu24\.04", steps[0][1])
    assert steps[1] == ("FROM", "${BASE}")


def test_nothing_is_fetched_by_url_and_no_secret_is_named(steps: list[tuple[str, str]]) -> None:
    assert "ADD" not in {name for name, _ in steps}
    for name, arguments in steps:
        assert "://" not in arguments
        assert name not in {"ARG", "ENV"} or not SECRET.search(arguments)


def test_it_runs_as_a_user_without_rights(steps: list[tuple[str, str]]) -> None:
    users = [arguments for name, arguments in steps if name == "USER"]
    assert users == ["10001:10001"]
    after = steps[steps.index(("USER", "10001:10001")) :]
    assert {name for name, _ in after} == {"USER", "WORKDIR"}


def test_every_package_is_of_the_lock(steps: list[tuple[str, str]]) -> None:
    installs = [
        shlex.split(command)
        for name, arguments in steps
        if name == "RUN"
        for command in arguments.split("&&")
        if "pip install" in command
    ]
    assert len(installs) == 3
    for words in installs:
        locked = "--constraint" in words and words[words.index("--constraint") + 1]
        assert locked == "requirements.lock" or {"--no-deps", "--no-index"} <= set(words)


def test_every_command_has_what_it_needs(steps: list[tuple[str, str]]) -> None:
    """Every extra but the demo's, the tests' and that of another store."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = project["optional-dependencies"].keys() - {"demo", "dev", "gs", "stores"}
    (named,) = (found for _, text in steps for found in re.findall(r"\.\[([\w,]+)\]", text))
    assert set(named.split(",")) == wanted


def test_the_code_comes_after_what_it_needs(steps: list[tuple[str, str]]) -> None:
    first, *rest = copied(steps)
    assert set(first) == {"pyproject.toml", "LICENSE", "requirements.lock"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    found = project["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {name.rstrip("*") for name in found} == PACKAGES
    assert {name for names in rest for name in names} == PACKAGES | {
        "svdllm.py",
        "deploy/with_gpus.py",
    }


def test_nothing_else_enters_the_build(steps: list[tuple[str, str]]) -> None:
    lines = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
    rules = [line for line in lines if not line.startswith("#")]
    assert rules[0] == "*"
    let_in = {rule[1:] for rule in rules if rule.startswith("!")}
    assert let_in == {name for names in copied(steps) for name in names}
    assert all((ROOT / name).exists() for name in let_in)
