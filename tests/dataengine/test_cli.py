from __future__ import annotations

import argparse
import hashlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import shtab

from dataengine.cli import main, make_parser
from dataengine.commands import arguments as arguments_module
from dataengine.config.load import dump_config, load_config
from tests.conftest import ROOT, ConfigMaker, write_jsonl

COMMANDS = [command.name for command in arguments_module.COMMANDS]
PROGRAMS = [program.name for program in arguments_module.PROGRAMS]


def exit_code(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert isinstance(stop.value.code, int)
    return stop.value.code


@pytest.fixture
def config_path(make_config: ConfigMaker, tmp_path: Path) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(make_config()))
    return str(path)


def streams(store: str | Path) -> dict[str, str]:
    """sha256 of all that is in the streams of a store."""
    files = sorted(path for path in Path(store, "streams").rglob("*") if path.is_file())
    return {str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_build_prints_tables_and_then_that_there_is_nothing_to_do(
    config_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["build", config_path, "--workers", "1", f"store={tmp_path / 'elsewhere'}"]) == 0
    printed = capsys.readouterr().out
    assert "24 samples (50.0%)" in printed
    assert exit_code(["build", "--workers", "1", config_path, f"store={tmp_path / 'elsewhere'}"]) == 0
    assert capsys.readouterr().out.startswith(f"nothing to do: {tmp_path}/elsewhere/experiments/small/")


def test_unusable_input_is_one_paragraph_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["build", str(tmp_path / "none.yaml")]) == 2
    path = tmp_path / "none.yaml"
    assert capsys.readouterr() == (
        "",
        f"error: cannot read config {path}: No such file or directory. Give the path of a YAML file.\n",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "dataengine: error: the following arguments are required: COMMAND"),
        (["biuld"], "dataengine: error: unknown command biuld (did you mean 'build'?). The commands are init, build, "),
        (["trian", "x.yaml"], "dataengine: error: unknown command trian (did you mean 'train'?). The commands are "),
        (["train", "-n", "0", "x.yaml"], "argument -n: must be a number from 1 on, got 0"),
        (["build"], "dataengine build: error: the following arguments are required: CONFIG\n"),
        (
            ["build", "x.yaml", "--wokers", "1"],
            "dataengine build: error: unknown option --wokers (did you mean '--worke",
        ),
        (["build", "x.yaml", "--wokers=1"], "unknown option --wokers=1 (did you mean '--workers'?)"),
        (["plan", "x.yaml", "-x"], "dataengine plan: error: unknown option -x\n"),
        (["build", "x.yaml", "--work", "1"], "unknown option --work"),  # an abbreviation may mean another one tomorrow
        (["build", "x", "--workers", "0"], "argument --workers: must be a number from 1 on, got 0"),
        (["build", "x", "--workers", "two"], "argument --workers: must be a number from 1 on, got two"),
        (["build", "x", "--sample", "4M"], "--sample goes with --dry-run"),
        (["build", "x", "--ray-address", "here:1"], "--ray-address goes with --engine ray"),
        (["plan", "x", "--text", "1"], "--text goes with --steps"),
        (["plan", "x", "--gpus", "8"], "--gpus goes with --gpu or --tokens-per-second"),
        (["plan", "x", "--tokens-per-second", "0"], "must be a number from 1 on, got 0"),
        (["worker", "x"], "the following arguments are required: --slice"),
        (["build", "x", "--slice", "1/2", "--finalize"], "only one of --dry-run, --engine ray, --slice and --finalize"),
        (["build", "x", "--wait", "0"], "--wait goes with --slice"),
        (["build", "x", "--slices", "3"], "--slices goes with --finalize"),
        (["export", "x"], "the following arguments are required: --to"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("usage: dataengine")
    assert message in printed.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["worker", "--slice", "0/3"], "--slice 0/3 is not of the form I/N with I from 1 to N, such as 3/8"),
        (["worker", "--slice", "4/3"], "--slice 4/3 is not of the form I/N with I from 1 to N, such as 3/8"),
        (["worker", "--slice", "3"], "--slice 3 is not of the form I/N with I from 1 to N, such as 3/8"),
        (["score", "--slice", "1/x"], "--slice 1/x is not of the form I/N with I from 1 to N, such as 3/8"),
        (["plan", "--steps", "3"], "--steps 3 is not of the form A:B, such as 0:3"),
        (["plan", "--steps", "a:b"], "--steps a:b is not of the form A:B, such as 0:3"),
        (["plan", "--steps", "0:17"], "steps 0:17 are not within the schedule's 16 steps (0:16)"),
        (["build", "--dry-run", "--sample", "much"], "--sample much is not a number of bytes, such as 800K, 4M or 1B"),
        (["build", "--dry-run", "--sample", "0"], "--sample 0 is not a number of bytes, such as 800K, 4M or 1B"),
        (["build", "stor=x"], "override stor=x: unknown key 'stor' (did you mean 'store'?)."),
        (["build", "x"], "override 'x' is not of the form key=value, such as train.max_steps=100"),
        (["build", "streams.mono.documents=[.]"], "stream 'mono': . is a folder. Name its files, such as ./*.jsonl"),
        (["build", "streams.mono.documents=[ftp://a/b.jsonl]"], "stream 'mono': cannot read ftp://a/b.jsonl. Give"),
        (["build", "streams.mono.documents=[~/b.jsonl]"], "stream 'mono': no file ~/b.jsonl. Correct the path under "),
        (["inspect", "--stream", "x"], "--stream x: the stages use mono, en-zh, both"),
        (["score"], "no stream that the stages use has `scores`: add them to a stream of pairs, such as "),
    ],
)
def test_unusable_values_are_exit_code_2(
    config_path: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command, *rest = arguments
    if command == "plan":
        assert exit_code(["build", config_path]) == 0
        capsys.readouterr()
    assert exit_code([command, config_path, *rest]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: {message}")


def check_imports(times: str) -> None:
    """No library of others, and nothing that takes as long as all the rest of --help."""
    imported = {line.rpartition("|")[2].strip() for line in times.splitlines()}
    assert "dataengine" in imported
    assert {name.partition(".")[0] for name in imported}.isdisjoint(
        {"boto3", "numpy", "orjson", "pydantic", "ray", "sentencepiece", "torch", "yaml"}
    )
    assert "importlib.metadata" not in imported


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_no_library_and_has_an_example_that_can_be_typed(command: str) -> None:
    arguments = [sys.executable, "-X", "importtime", "-m", "dataengine", command, "--help"]
    ended = subprocess.run(arguments, capture_output=True, text=True, check=True, cwd=ROOT)
    check_imports(ended.stderr)
    shown = ended.stdout
    assert f"usage: dataengine {command} " in shown
    examples = shown.rpartition("\nexample:\n")[2].replace("$((SLURM_ARRAY_TASK_ID + 1))", "1").splitlines()
    assert examples
    for example in examples:
        options, rest = make_parser().parse_known_args(shlex.split(example.removeprefix("  dataengine ")))
        assert options.command == command
        assert all("=" in word and not word.startswith("-") for word in rest)
        configs = [word for word in (options.config, *options.overrides) if word.endswith(".yaml")]
        for path in configs:
            load_config(ROOT / path, [word for word in (*options.overrides, *rest) if word not in configs])


def test_all_commands_are_listed_once_in_groups() -> None:
    ended = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "dataengine", "--help"], capture_output=True, text=True, check=True
    )
    check_imports(ended.stderr)
    shown = ended.stdout
    groups = shown.partition("\n\nAdd --help")[0].split("\n\n")[-3:]
    assert [group.partition(":")[0] for group in groups] == [
        "build data",
        "look at data and plans",
        "train and evaluate",
    ]
    rows = re.findall(r"^  ([\w-]+) +\w", "\n".join(groups), flags=re.MULTILINE)
    assert sorted(rows) == sorted([*COMMANDS, *PROGRAMS])


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh", "fish"])
def test_a_completion_script_knows_commands_options_and_files(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["--print-completion", shell]) == 0
    script = capsys.readouterr().out
    for word in (*COMMANDS, *PROGRAMS, "tokens-per-second"):
        assert word in script
    action = argparse.Action([], "config")
    arguments_module.is_file(action)
    files = action.complete[shell]  # type: ignore[attr-defined]
    assert files == shtab.FILE[shell]
    assert files in script


def test_bash_completes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["--print-completion", "bash"]) == 0
    script = tmp_path / "completion.bash"
    script.write_text(capsys.readouterr().out)
    (tmp_path / "first.yaml").touch()

    def complete(*words: str) -> list[str]:
        shown = shlex.join(words)
        code = (
            f"source {script}; COMP_WORDS=({shown}); COMP_CWORD={len(words) - 1}; "
            f"_shtab_dataengine dataengine {shlex.quote(words[-1])} {shlex.quote(words[-2])}; "
            'printf "%s\\n" "${COMPREPLY[@]}"'
        )
        ended = subprocess.run(["bash", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
        return ended.stdout.split()

    assert complete("dataengine", "pl") == ["plan"]
    assert complete("dataengine", "e") == ["export", "evaluate", "export-model"]
    assert complete("dataengine", "plan", "--st") == ["--steps"]
    assert complete("dataengine", "build", "first.yaml", "--eng") == ["--engine"]
    assert complete("dataengine", "plan", "fi") == ["first.yaml"]
    assert complete("dataengine", "train", "fi") == ["first.yaml"]


def imported(code: str, heavy: tuple[str, ...]) -> str:
    code = f"import sys; {code}; print(*[m for m in {heavy} if m in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_a_checkout_runs_without_being_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its version is that of the installed package."""

    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", version)
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["--version"])
    assert capsys.readouterr().out == "dataengine (not installed)\n"


def test_the_build_path_imports_no_torch() -> None:
    heavy = ("torch", "streaming", "composer", "transformers", "pyarrow", "boto3", "botocore", "ray", "comet")
    assert imported("import dataengine.build.build, dataengine.cli, dataengine.build.executors", heavy) == ""


def test_the_command_line_itself_imports_little() -> None:
    assert imported("import dataengine.cli", ("numpy", "pydantic", "yaml", "orjson", "dataengine.build.build")) == ""


def test_settings_may_follow_options(config_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "elsewhere"
    assert exit_code(["build", config_path, f"store={store}", "--workers", "2", "seq_len=64", "batch_size=4"]) == 0
    assert f"manifest {store}/experiments/small/manifest.json" in capsys.readouterr().out
    built = load_config(store / "experiments" / "small" / "config.yaml")
    assert (built.seq_len, built.batch_size) == (64, 4)


def test_what_a_user_may_not_mean_is_noted(
    config_path: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert exit_code(["build", config_path]) == 0
    assert "note: " not in capsys.readouterr().err
    (name,) = [Path(path) for path in load_config(config_path).streams["mono"].documents]
    twice = [f"streams.mono.documents=[{name}, {name}]", "budget={steps: 99}"]
    assert exit_code(["build", config_path, *twice]) == 0
    notes = capsys.readouterr().err
    assert f"note: stream 'mono' reads {name.with_name('mono.0.jsonl')} 2 times" in notes
    assert "note: small was built before with another plan; this build replaces it" in notes
    assert "note: the stages take 16 of the budget's 99 steps" in notes
    assert exit_code(["plan", config_path, *twice, "train.learning_rate=1e-3", "out=elsewhere"]) == 0
    assert "small: plan " in capsys.readouterr().out
    assert exit_code(["build", config_path, "streams.mono.text_key=body"]) == 2
    assert "). Name the key that they have (streams.mono.text_key: ...), or check the format" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert exit_code(["build", config_path, f"store={tmp_path / 'file'}"]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'file'} is a file, but must be a folder. Correct the path.\n"


def test_a_dry_run_says_what_the_build_then_counts(config_path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["build", config_path, "--dry-run"]) == 0
    estimated = capsys.readouterr().out
    assert "the schedule fits: 16 steps" in estimated
    assert exit_code(["build", config_path]) == 0
    tables = [{row.split()[0]: row.split() for row in printed.splitlines() if row}
              for printed in (estimated, capsys.readouterr().out)]  # fmt: skip
    for name in ("mono", "en-zh", "both"):
        # stream, bytes (a number and its unit), sampled, records, kept, tokens; stream, records, ..., kept, tokens
        assert tables[0][name][4:7] == [tables[1][name][k] for k in (1, 4, 5)]


@pytest.mark.parametrize("verbs", [(["build"], ["build", "--finalize"]), (["worker"], ["finalize"])])
def test_slices_and_finalize(
    config_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], verbs: tuple[list[str], list[str]]
) -> None:
    store = f"store={tmp_path / 'sliced store'}"
    whole = tmp_path / "whole"
    assert exit_code(["build", config_path, f"store={whole}"]) == 0
    capsys.readouterr()

    def worker(number: int) -> tuple[int, str, str]:
        code = exit_code([*verbs[0], config_path, "--slice", f"{number}/3", "--wait", "0", "--workers", "1", store])
        return code, *capsys.readouterr()

    def finalize(*more: str) -> tuple[int, str, str]:
        code = exit_code([*verbs[1], config_path, *more, store])
        return code, *capsys.readouterr()

    # The first round tokenizes six files, two a slice.
    again = f"dataengine build {config_path} --slice 1/3 'store={tmp_path}/sliced store'"
    assert worker(1) == (
        3,
        "",
        "slice 1/3 has finished its part of tokenizing and waits for slice 2/3 (2 units), slice 3/3 (2 units). When "
        f"they are done, start this slice again: {again}\n",
    )
    rest = f"or run the rest here: dataengine build {config_path} 'store={tmp_path}/sliced store'\n"
    assert finalize("--slices", "3") == (
        2,
        "",
        "error: tokenizing is not finished; unfinished: slice 2/3 (2 units), slice 3/3 (2 units). Start these slices "
        f"again, {rest}",
    )
    assert finalize()[2] == (
        f"error: tokenizing is not finished; unfinished: 4 units. Start these slices again, {rest}"
    )
    codes = [worker(number)[0] for _ in range(3) for number in (1, 2, 3)]
    assert codes[-3:] == [0, 0, 0]
    done = f"dataengine build {config_path} --finalize --slices 3 'store={tmp_path}/sliced store'"
    assert worker(3) == (0, f"slice 3/3 has finished all its units. When all slices have: {done}\n", "")
    assert not (tmp_path / "sliced store" / "experiments").exists()
    code, printed, _ = finalize("--slices", "3")
    assert (code, "24 samples (50.0%)" in printed) == (0, True)
    assert streams(tmp_path / "sliced store") == streams(whole)
    assert finalize()[1].startswith("nothing to do: ")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_ends_a_build_with_a_word_and_a_second_start_completes_it(
    make_config: ConfigMaker, tmp_path: Path, workers: str
) -> None:
    config = make_config()
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    whole = tmp_path / "whole"
    assert exit_code(["build", str(path), f"store={whole}"]) == 0
    command = [sys.executable, "-m", "dataengine", "build", str(path), "--workers", workers]
    process = subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    store = Path(config.store)
    while not list(store.glob("units/*")) and process.poll() is None:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all processes of the command
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, ""), error
    assert error.endswith("stopped; run the same command again to resume\n")
    assert not (store / "experiments").exists()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert streams(store) == streams(whole)
    assert not list(store.rglob(".writing-*"))


def test_a_reader_that_has_seen_enough_is_not_an_error(config_path: str) -> None:
    command = [sys.executable, "-m", "dataengine", "plan", config_path, "--steps", "0:16"]
    assert exit_code(["build", config_path]) == 0
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141


def test_what_data_hold_cannot_command_the_terminal(
    config_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Escape sequences and marks of direction in texts, unusable lines, keys and file names show as escapes."""
    evil = "\x1b[2J\x1b]0;owned\x07\r\x08\u202e"
    path = tmp_path / f"docs{evil}.jsonl"
    records = [{"text": f"{evil} document number {n} " + "of some length " * 20} for n in range(99)]
    write_jsonl(path, [*records, {"text": 3, "why": evil}, {"txt": evil}, records[0]])
    settings = [
        f"streams={{mono: {{documents: ['{tmp_path}/docs*.jsonl'], clean: {{dedup: [text]}}}}}}",
        "stages=[{name: a, steps: 2, mix: {mono: 1}}]",
        "evaluate={}",
    ]
    bad = "max_bad_fraction=0.5"
    name = "docs\\x1b[2J\\x1b]0;owned\\x07\\r\\x08\\u202e.jsonl"
    for command, code, shows in (
        (["build"], 2, name),
        (["build", bad], 0, "manifest "),
        (["inspect", bad], 0, name),
        (["inspect", "--stream", "mono", "--sample", "0", bad], 0, name),
        (["inspect", "--line", f"{path}:1", bad], 0, "samples 0"),
        (["inspect", "--line", f"{path}x:1", bad], 2, name),
        (["plan", "--steps", "0:2", "--text", "3", bad], 0, "document number"),
    ):
        assert exit_code([command[0], config_path, *command[1:], *settings]) == code
        shown = "".join(capsys.readouterr())
        assert shows in shown
        assert not set(shown) & set("\x1b\x07\r\x08\u202e")


def test_a_broken_pipe_that_is_not_the_reader_is_not_silent(config_path: str) -> None:
    code = (
        "import sys; from dataengine import cli\nfrom dataengine.commands import build\n"
        "def fail(*args, **kwargs): raise BrokenPipeError(32, 'of a worker')\n"
        "build.build = fail; cli.main(sys.argv[1:])"
    )
    ended = subprocess.run([sys.executable, "-c", code, "build", config_path], capture_output=True, text=True)
    assert ended.returncode not in (0, 141)
    assert "of a worker" in ended.stderr


def test_ctrl_c_begins_no_more_units(make_config: ConfigMaker, tmp_path: Path) -> None:
    config = make_config(part_bytes=500)
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    command = [sys.executable, "-m", "dataengine", "build", str(path), "--workers", "2"]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    units = Path(config.store, "units")
    while not list(units.glob("*/receipt.json")) and process.poll() is None:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=60)[1] == "stopped; run the same command again to resume\n"
    finished = len(list(units.glob("*/receipt.json")))
    time.sleep(1)
    assert len(list(units.glob("*/receipt.json"))) == finished < 100  # of some 300


def test_build_and_dry_run_say_which_evaluation_sets_are_missing(
    config_path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for more in (["--dry-run"], ["--workers", "1"]):
        assert exit_code(["build", config_path, *more, "evaluate.test={en-zh: none.tsv}"]) == 0
        assert "note: evaluate.test.en-zh is none.tsv, which does not exist yet\n" in capsys.readouterr().err


def test_build_lists_the_most_frequent_reasons_first_and_inspect_repeats_the_notes(
    make_config: ConfigMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [{"text": f"a text of some length, number {n}"} for n in range(40)]
    records += [{"text": ""}, *[{"text": None}] * 2, *[{"other": ""}] * 3]
    config = make_config(
        streams={"mono": {"documents": [str(write_jsonl(tmp_path / "d.jsonl", records))], "language": "chinese"}},
        stages=[{"name": "all", "steps": 1, "mix": {"mono": 1}}], max_bad_fraction=0.5,
    )  # fmt: skip
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    assert exit_code(["build", str(path), "--workers", "1"]) == 0
    assert re.findall(r"^mono: (\d+) unusable: ", capsys.readouterr().out, re.MULTILINE) == ["3", "2", "1"]
    assert exit_code(["inspect", str(path), "--workers", "1"]) == 0
    assert "its texts are not checked. Chinese is zh\n" in capsys.readouterr().err


def test_a_build_shows_what_a_parents_steps_draw(
    config_path: str, make_config: ConfigMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["build", config_path, "--workers", "1"]) == 0
    parent = {"manifest": str(tmp_path / "store/experiments/small/manifest.json"), "step": 12}
    config = make_config(name="child", parent=parent, stages=[{"name": "end", "steps": 1, "mix": {"mono": 1}}])
    child = tmp_path / "child.yaml"
    child.write_text(dump_config(config))
    capsys.readouterr()
    assert exit_code(["build", str(child), "--workers", "1"]) == 0
    mixed = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("mixed"))
    assert re.findall(r"[\d,]+ samples", mixed) == ["8 samples", "16 samples", "24 samples"]  # both, en-zh, mono
