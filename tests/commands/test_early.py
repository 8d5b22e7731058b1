"""What is refused, or said, before torch is imported."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from adaspa_cli.app import app
from adaspa_cli.config import resolve
from adaspa_cli.config.architecture import BUNDLED
from adaspa_cli.files.mask_header import LENGTH_BYTES
from tests.forked import Forks
from tests.mask_files import small_file
from tests.pipelines import PROMPT, small_run

RUN = ("generate", "--prompt", "x")
FITS = (*RUN, "--masks", "masks", "--block-size", 8, "--sparsity", 0.75)
Refused = Callable[..., tuple[str, str]]


@pytest.fixture
def refused(light: Forks) -> Refused:
    """The error and the hint of a real process, which may import nothing heavy and write nothing."""

    def run(folder: Path, *arguments: Any) -> tuple[str, str]:
        before = set(folder.rglob("*"))
        done = light.run(*arguments, "--json", cwd=folder)
        assert done.returncode == 2, done.stderr
        assert done.stderr == "[]\n"
        assert set(folder.rglob("*")) == before
        told = json.loads(done.stdout)
        return told["error"], told["hint"] or ""

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with files that are no use: ``masks`` fits no model, the others are broken.

    ``wan.safetensors`` has weights of another model than HunyuanVideo, of 5120 channels.
    """
    header = json.dumps({"blocks.0.attn1.to_q.weight": {"dtype": "BF16", "shape": [5120, 5120]}}).encode()
    (tmp_path / "wan.safetensors").write_bytes(len(header).to_bytes(LENGTH_BYTES, "little") + header)
    (tmp_path / "text.safetensors").write_text("no tensors at all")
    (tmp_path / "file").touch()
    whole = small_file(tmp_path / "masks").path.read_bytes()
    (tmp_path / "truncated").write_bytes(whole[:-1])
    (tmp_path / "changed").write_bytes(whole.replace(b"Stern", b"stern", 1))
    (tmp_path / "foreign").write_bytes((2).to_bytes(LENGTH_BYTES, "little") + b"{}")
    return tmp_path


def checkpoint(folder: Path, left_out: str) -> Path:
    """The bundled model without some of its files."""
    return Path(shutil.copytree(BUNDLED, folder, copy_function=os.symlink, ignore=shutil.ignore_patterns(left_out)))


@pytest.mark.parametrize(
    ("left_out", "error"),
    [
        ("scheduler", "model is incomplete: it lacks scheduler"),
        (
            "*.safetensors",
            "model is incomplete: it lacks the weights of text_encoder, text_encoder_2, transformer, vae",
        ),
        ("config.json", "cannot read model/transformer/config.json: "),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_refused_at_once(
    refused: Refused, tmp_path: Path, left_out: str, error: str
) -> None:
    checkpoint(tmp_path / "model", left_out)
    assert refused(tmp_path, *RUN, "--model", "model")[0].startswith(error)


@pytest.mark.parametrize("patch", ["x", 0])
@pytest.mark.parametrize("flags", [(), ("--random-weights",)])
def test_a_checkpoint_of_impossible_sizes_is_refused_at_once(
    refused: Refused, tmp_path: Path, patch: object, flags: Any
) -> None:
    config = checkpoint(tmp_path / "model", "README.md") / "transformer" / "config.json"
    content = json.loads(config.read_text()) | {"patch_size": patch}
    config.unlink()
    config.write_text(json.dumps(content))
    error, _ = refused(tmp_path, *RUN, "--model", "model", *flags)
    assert error == "the configurations in model name impossible sizes"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((*RUN, "--frames", 6), "the model makes 4k + 1 frames, got 6"),
        ((*RUN, "--height", 100), "height must be a multiple of 16, got 100"),
        ((*RUN, "--model", "hunyuan", "--width", 1000, "--random-weights"), "width must be a multiple of 16, got 1000"),
        ((*RUN, "--image", "none.png"), "image: this model, a HunyuanVideoPipeline, makes videos from text only"),
        ((*RUN, "--last-image", "x.png"), "last_image needs the image that the video begins with"),
        (
            (*RUN, "--model", "wan2.1-i2v-14b", "--image", "x.png", "--last-image", "x.png"),
            "last_image: this model, a WanImageToVideoPipeline, takes no last image",
        ),
        ((*RUN, "--model", "wan2.2-5b-i2v", "--image", "x.png", "--frames", 1), "frames: a video of one frame would"),
        ((*RUN, "--model", "hunyuan-i2v", "--image", "x.png", "--frames", 1), "frames: a video of one frame would be"),
        ((*RUN, "--model", "wan2.2-5b-i2v"), "this model makes a video from a picture, and none was given"),
        ((*RUN, "--model", "hunyuan", "--transformer", "none.gguf", "--weights-dtype", "fp8"), "a GGUF file is quant"),
        ((*RUN, "--model", "hunyuan", "--transformer", "none.safetensors"), "transformer none.safetensors is not a fi"),
        ((*RUN, "--model", "hunyuan", "--transformer", "text.safetensors"), "transformer text.safetensors is not a .s"),
        (
            (*RUN, "--model", "hunyuan", "--transformer", "wan.safetensors"),
            "transformer wan.safetensors is for another model: none of its tensors has 3072 channels",
        ),
        ((*RUN, "--model", "cogvideox", "--transformer", "wan.safetensors"), "transformer: diffusers can't read the"),
        ((*RUN, "--model", "wan2.2-a14b", "--lora", "wan.safetensors"), "lora does not say which of the model's two"),
        ((*RUN, "--model", "wan2.1-14b", "--lora-low", "wan.safetensors"), "lora_low is for a model with two trans"),
        ((*RUN, "--negative-prompt", "y"), "a negative prompt has no effect on this model"),
        (
            (*RUN, "--model", "wan2.1-14b", "--cache", "pab"),
            "pab keeps one attention output per layer, but this run has",
        ),
        (
            (*RUN, "--model", "hunyuan1.5-480p", "--cache", "first-block"),
            "diffusers has no cache 'first-block' for thi",
        ),
        (
            (*RUN, "--model", "wan2.2-a14b", "--method", "magcache-calibration"),
            "magcache's ratios describe one transformer over all steps, but this model has two",
        ),
        ((*RUN, "--masks", "none.safetensors"), "cannot read masks from none.safetensors: No such file"),
        ((*RUN, "--masks", "."), "cannot read masks from .: Is a directory"),
        ((*RUN, "--out", "file/videos"), "cannot write to file/videos: "),
        ((*RUN, "--compare-with", "none.report.json"), "cannot read the report none.report.json: No such file"),
        ((*RUN, "--model", "nobody/nothing"), "cannot fetch nobody/nothing: HF_HUB_OFFLINE is set"),
        ((*RUN, "--out", "~no-such-user/x"), "'~no-such-user/x' names the home folder of an unknown user"),
        ((*RUN, "--model", "~no-such-user/x"), "'~no-such-user/x' names the home folder of an unknown user"),
        ((*RUN, "--steps", 10**20), "steps must be at most 10000, got 100000000000000000000"),
        ((*RUN, "--block-size", 100000), "block_size must be at most 1024, got 100000"),
        ((*RUN, "--steps", "many"), "Invalid value for '--steps': must be a whole number, got 'many'"),
        ((*RUN, "--guidance-scale", "1,5"), "Invalid value for '--guidance-scale': must be a number, got '1,5'"),
        ((*RUN, "--prompt", b"a\xffb".decode(errors="surrogateescape")), "prompt is not valid UTF-8: 'a\\xffb'"),
        (("search-masks", "--prompt", "x", "--out", "a.safetensors", "--frames", 6), "the model makes 4k + 1 frames"),
        (("search-masks", "--prompt", "x", "--out", "file/a.safetensors"), "cannot write to file: "),
        (("search-masks", "--prompt", "x", "--out", "a.safetensors", "--set", "foo=1"), "unknown key 'foo' in --set"),
        (("visualize", "--prompt", "x", "--set", "frames=6"), "the model makes 4k + 1 frames, got 6"),
        (("visualize", "--prompt", "x", "--at-layers", "0,8"), "the model has no layer 8"),
        (
            (
                "visualize",
                "--prompt",
                "x",
                "--model",
                "wan2.2-a14b",
                "--set",
                "random_weights=true",
                "--set",
                "layers=2",
            ),
            "visualize looks at the same layers at every step, and this model has 2 transformers",
        ),
        (("visualize", "--prompt", "x", "--out", "file"), "cannot write to file: "),
        ((*RUN, "--out", ""), "Invalid value for '--out' / '-o': must name a file or folder, and is empty"),
        (("bench", "--preset", "tiny-smoke", "--out", "file"), "cannot write to file: "),
        (("bench", "--preset", "tiny-smoke", "--seed", -1), "seed must be one or more numbers from 0 to 2^64 - 1"),
        (("masks", "info", "none"), "cannot read masks from none: No such file"),
        (("masks", "verify", "file", "none"), "cannot read masks from none: No such file"),
        (("masks", "compare", "none", "file"), "cannot read masks from none: No such file"),
        (("masks", "plot", "masks", "--out", "file"), "cannot write to file: "),
        (("masks", "plot", "masks", "--at-heads", "0,2"), "masks has no head 2; its heads are 0 to 1"),
        (("masks", "plot", "masks", "--at-layers", "2"), "masks has no layer 2; its layers are 0 to 1"),
        (("masks", "plot", "masks", "--steps", "3"), "masks has no search step 3; its search steps are 2, 8"),
        (("masks", "plot", "masks", "--query", "3,0,0"), "query 3,0,0 is outside the video of 3 x 4 x 8 tokens"),
        (("masks", "plot", "masks", "truncated"), "truncated is truncated: it has "),
        (("masks", "compare", "masks", "masks", "--steps", "2,9"), "nothing to compare: masks has search steps [2, 8]"),
        (("masks", "compare", "masks", "truncated"), "truncated is truncated: it has "),
        (("masks", "info", "truncated"), "truncated is truncated: it has "),
        ((*RUN, "--masks", "truncated"), "truncated is truncated: it has "),
        ((*RUN, "--masks", "masks"), "masks does not fit the run: block_size is 8 in the file and 64 in the run"),
        ((*FITS, "--sparsity", 0.5), "masks does not fit the run: sparsity is 0.75 in the file and 0.5 in the run"),
        ((*FITS, "--model", "hunyuan"), "masks does not fit the run: model is tiny in the file and hunyuan in the run"),
        ((*FITS, "--random-weights"), "masks does not fit the run: random_weights is False in the file and True"),
        ((*FITS, "--resume"), "masks does not fit the run: layers is 2 in the file and 8 in the run"),
        (("visualize", "--prompt", "x", "--at-heads", "0,4"), "the model has no head 4"),
        (
            ("visualize", "--prompt", "x", "--query", "9,0,0"),
            "query 9,0,0 is outside the video of 9 x 32 x 32 tokens",
        ),
        (
            (*RUN, "--device", "cpu", "--attention-backend", "triton"),
            "attention backend 'triton' cannot run on cpu: on ",
        ),
        ((*RUN, "--device", "cpu", "--offload", "model"), "--offload model needs a GPU, and the run is on cpu"),
        ((*RUN, "--strict-prompt"), "tiny doesn't know: x"),
        (("visualize", "--prompt", "x", "--set", "strict_prompt=true"), "tiny doesn't know: x"),
        ((*RUN, "--masks", "file"), "file is not a mask file, or is truncated: its header is not whole"),
        ((*RUN, "--masks", "foreign"), "foreign is a safetensors file, but holds no masks of adaspa"),
        ((*RUN, "--masks", "changed"), "changed is corrupt: the checksum does not fit its description"),
        (("masks", "info", "changed"), "changed is corrupt: the checksum does not fit its description"),
        (("masks", "compare", "masks", "changed"), "changed is corrupt: the checksum does not fit its description"),
        (("masks", "plot", "changed"), "changed is corrupt: the checksum does not fit its description"),
    ],
)
def test_nothing_heavy_is_imported_for_a_mistake(
    refused: Refused, folder: Path, arguments: tuple[Any, ...], error: str
) -> None:
    assert refused(folder, *arguments)[0].startswith(error)


def test_what_a_mask_file_says_is_shown_without_torch(light: Forks, folder: Path) -> None:
    done = light.run("masks", "info", "masks", "--json", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "[]\n")
    assert json.loads(done.stdout)["layers"] == 2


@pytest.mark.parametrize(
    ("wrong", "nearest"), [(("--height", 100), "nearest: 96; "), (("--frames", 8), "nearest: 9; ")]
)
def test_a_size_that_the_model_does_not_make_names_the_models_own(
    refused: Refused, tmp_path: Path, wrong: tuple[str, int], nearest: str
) -> None:
    _, hint = refused(tmp_path, *RUN, *wrong)
    own = resolve({}).config.sampling
    flags = f"--height {own.height} --width {own.width} --frames {own.frames}"
    assert hint == f"{nearest}the model's own size: {flags}"


def test_a_prompt_without_its_flag(refused: Refused, tmp_path: Path) -> None:
    error, hint = refused(tmp_path, "generate", "a red circle")
    assert error.startswith("Got unexpected extra argument")
    assert hint.startswith('adaspa generate --prompt "..."')


@pytest.mark.parametrize(
    ("command", "flag", "hint"),
    [
        ("search-masks", "--flow-shift", "adaspa search-masks --set flow_shift=VALUE"),
        ("bench", "--linear", "adaspa bench --set linear=VALUE"),
        ("bench", "--nonsense", "adaspa bench --help"),
        ("bench", "--masks", "adaspa bench --set masks=VALUE"),
        ("bench", "--compare-with", "adaspa bench --help"),
        ("bench", "--prompts", "adaspa bench --help"),
        ("search-masks", "--masks", "adaspa search-masks --help"),
        ("search-masks", "--cache", "adaspa search-masks --help"),
        ("visualize", "--resume", "adaspa visualize --help"),
        ("gallery", "--linear", "adaspa gallery --help"),
    ],
)
def test_a_setting_that_has_no_flag_of_its_own_here(
    refused: Refused, tmp_path: Path, command: str, flag: str, hint: str
) -> None:
    error, said = refused(tmp_path, command, flag, "5")
    assert error.startswith(f"No such option: {flag}")
    assert said == hint


def test_a_folder_that_is_not_there_is_no_unknown_architecture(refused: Refused, tmp_path: Path) -> None:
    error, _ = refused(tmp_path, *RUN, "--plan", "--model", "/no/such/folder")
    assert error == "model /no/such/folder does not exist"


def test_rows_are_listed_once(refused: Refused, tmp_path: Path) -> None:
    _, hint = refused(tmp_path, "bench", "--preset", "tiny-smoke", "--rows", "nope")
    rows = hint.removeprefix("rows: ").split(", ")
    assert "full" in rows
    assert len(rows) == len(set(rows))


def test_what_is_quoted_is_cut(refused: Refused, tmp_path: Path) -> None:
    error, _ = refused(tmp_path, *RUN, "--model", 5000 * "a")
    assert len(error) <= 500


@pytest.mark.parametrize(
    ("arguments", "note"),
    [
        (["--method", "full", "--sparsity", "0.5"], "no effect with method full: --sparsity, --search-st"),
        (["--method", "tomesd", "--lse-cache"], "--sparsity, --search-steps, --block-size, --lse-cache"),
        (["--masks-fallback", "warn"], "no effect without --masks-min-recall: --masks-fallback"),
        (["--set", "pab_range=3"], "no effect with cache none: --set pab_range"),
        (["--seed", "1", "--seed", "1", "--seed", "2"], "seed given more than once, used once: 1"),
        (["--prompt", PROMPT], f"prompt given more than once, used once: {PROMPT}"),
        (["--config", "seeds.yaml"], "seed given more than once, used once: 3"),
    ],
)
def test_flags_that_do_nothing_are_said(
    hunyuan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], note: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("seeds.yaml").write_text("seed: [3, 3]\n")
    result = generate(hunyuan_folder, tmp_path, *arguments)
    assert result.exit_code == 0, result.output
    assert note in result.stderr
    assert len(json.loads(result.stdout)) == (2 if "--seed" in arguments else 1)


def test_words_that_the_model_does_not_know_are_said(tmp_path: Path) -> None:
    arguments = ["generate", "--prompt", "a red cirle", "--height", "32", "--width", "32", "--frames", "5"]
    arguments += ["--steps", "1", "--method", "full", "--out", str(tmp_path), "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "tiny doesn't know: cirle (circle?); it can't show them (--strict-prompt " in result.stderr
    assert "It knows shapes circle, square, triangle, star; colors" in result.stderr
    assert "tiny was not trained on frames 5 (33), height 32 (256), width 32 (256)" in result.stderr
    quiet = CliRunner().invoke(app, [*arguments, "--quiet", "--no-decode"])
    assert quiet.exit_code == 0, quiet.output
    assert quiet.stderr == ""


def test_prompts_come_from_stdin_and_from_a_file_each_once(hunyuan_folder: Path, tmp_path: Path) -> None:
    given = "a circle\n# no prompt\n\na square\na circle\n"
    result = generate(hunyuan_folder, tmp_path, "--prompts", "-", stdin=given, prompt=[])
    assert [entry["report"]["prompt"] for entry in json.loads(result.stdout)] == ["a circle", "a square"]
    assert "prompt given more than once, used once: a circle" in result.stderr
    nothing = generate(hunyuan_folder, tmp_path, "--prompts", "-", stdin="", prompt=[])
    assert json.loads(nothing.stdout)["error"] == "stdin holds no prompt"


def generate(model: Path, folder: Path, *arguments: str, stdin: str | None = None, **changed: Any) -> Any:
    """A small run in this process."""
    given = []
    for key, value in (small_run(model, folder / "out") | {"attention_backend": "auto"} | changed).items():
        texts = [",".join(map(str, value))] if key == "search_steps" else value if isinstance(value, list) else [value]
        given += [part for text in texts for part in (f"--{key.replace('_', '-')}", str(text))]
    return CliRunner().invoke(app, ["generate", *given, *arguments, "--json"], input=stdin)
