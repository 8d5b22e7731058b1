"""Completion as the scripts for bash, zsh and fish ask for it: by environment variables."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from adaspa_cli.app import main
from adaspa_cli.commands.completion import prepare_completion
from adaspa_cli.config.presets import preset_names

SHELLS = ("bash", "zsh", "fish")
Ask = Callable[[str, str], list[str]]


def request(shell: str, line: str) -> dict[str, str]:
    """The variables that the script of a shell sets when Tab is pressed at the end of a line."""
    words = line.split(" ")
    asked = {"_ADASPA_COMPLETE": f"complete_{shell}", "COLUMNS": "80"}
    if shell == "bash":
        return asked | {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}
    return asked | {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Ask:
    """What Tab at the end of a line offers: the words that bash and fish read, the lines that zsh runs."""

    def asked(shell: str, line: str) -> list[str]:
        for key, value in request(shell, line).items():
            monkeypatch.setenv(key, value)
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capfd.readouterr()
        assert (ended.value.code, printed.err) == (0, "")
        return [line for line in printed.out.splitlines() if line]

    return asked


def names(shell: str, offered: list[str]) -> list[str]:
    """The candidates alone, without what they mean."""
    if shell == "zsh":
        assert offered[0].startswith("_arguments '*: :((")
        assert offered[-1].endswith("))'")
        offered[0] = offered[0].removeprefix("_arguments '*: :((")
        offered[-1] = offered[-1].removesuffix("))'")
        return [candidate.split('"')[1] for candidate in offered]
    return [candidate.split("\t")[0] for candidate in offered]


@pytest.mark.parametrize("shell", SHELLS)
def test_flags_and_values(ask: Ask, shell: str) -> None:
    assert names(shell, ask(shell, "adaspa gen")) == ["generate"]
    assert names(shell, ask(shell, "adaspa generate --mo")) == ["--model"]
    assert names(shell, ask(shell, "adaspa generate --model ")) == preset_names("models")
    assert names(shell, ask(shell, "adaspa generate --prompt x --method frame")) == ["frame-region"]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("search-masks --model hunyuan-", ["hunyuan-i2v", "hunyuan-i2v-33ch"]),
        ("generate --attention-backend ", ["auto", "triton", "cpu", "reference"]),
        ("generate --cache first", ["first-block"]),
        ("bench --preset tiny-s", ["tiny-smoke"]),
        ("models tin", ["tiny"]),
        ("generate --model = tin", ["tiny"]),
        ("generate --device = cu", ["cuda"]),
        ("generate --out vid", []),
        ("generate --model ./", []),
        ("masks info ", []),
    ],
)
def test_bash(ask: Ask, line: str, offered: list[str]) -> None:
    """Nothing offered: bash completes files then."""
    assert ask("bash", f"adaspa {line}") == offered


@pytest.mark.parametrize(("shell", "files"), [("zsh", ["_files"]), ("fish", [])])
def test_files_are_left_to_the_shell(ask: Ask, shell: str, files: list[str]) -> None:
    assert ask(shell, "adaspa generate --image pic") == files


def test_a_candidate_is_one_line(ask: Ask) -> None:
    """The help of --model is longer than a line of a terminal."""
    assert len(ask("fish", "adaspa generate --mo")) == 1


def test_the_equals_sign_to_be_completed_is_an_empty_word() -> None:
    asked = {"_ADASPA_COMPLETE": "complete_bash", "COMP_WORDS": "adaspa\ngenerate\n--model\n=", "COMP_CWORD": "3"}
    prepare_completion(asked)
    assert asked["COMP_WORDS"].split("\n") == ["adaspa", "generate", "--model", ""]


def test_without_a_request_nothing_changes() -> None:
    environment = {"COMP_WORDS": "a\n=\nb", "COMP_CWORD": "2"}
    prepare_completion(environment)
    assert environment == {"COMP_WORDS": "a\n=\nb", "COMP_CWORD": "2"}


def test_the_script_is_for_adaspa_however_it_was_started() -> None:
    asked = {"_ADASPA_COMPLETE": "source_zsh"}
    found = subprocess.run(
        [sys.executable, "-m", "adaspa_cli"], env=os.environ | asked, capture_output=True, text=True, timeout=60
    )
    assert "complete_zsh adaspa" in found.stdout
    assert "adaspa_cli" not in found.stdout


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys\nfrom adaspa_cli.app import main\n"
        "try: main()\n"
        "except SystemExit: assert not {'torch', 'diffusers', 'numpy', 'yaml'} & sys.modules.keys()\n"
        "else: raise AssertionError\n"
    )
    asked = request("bash", "adaspa generate --model ")
    subprocess.run([sys.executable, "-c", code], env=os.environ | asked, check=True, capture_output=True, timeout=60)
